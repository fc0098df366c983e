"""Curves of a search and of a retraining."""

import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.colors
import matplotlib.figure
import matplotlib.font_manager
import matplotlib.patches
import matplotlib.path
import matplotlib.textpath
import matplotlib.ticker
import numpy as np

from rome_jax.show import cells as cells_lib
from rome_jax.show import figures
from rome_jax.spaces.genotypes import Genotype

# The pictures of a run directory; each is an .svg and a .png file.
PICTURES = ('cell_normal', 'cell_reduce', 'search', 'edges', 'training')


# Runs: curves from the rows of metrics.jsonl.


def search_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The rows of a search, one after another where it has several phases.

  Args:
    rows: rows of metrics.jsonl. Those of 'search' and of 'search/<part>'
      count; steps and epochs of a part begin where the part before ended.

  >>> rows = [{'phase': f'search/{name}', 'step': step}
  ...         for name in 'ab' for step in (5, 10)]
  >>> [row['step'] for row in search_rows(rows)]
  [5, 10, 15, 20]
  """
  found: list[dict[str, Any]] = []
  starts: dict[str, Mapping[str, Any]] = {}
  for row in rows:
    phase = str(row.get('phase'))
    if phase.partition('/')[0] != 'search':
      continue
    start = starts.setdefault(phase, found[-1] if found else {})
    moved = {axis: row[axis] + start[axis] for axis in ('step', 'epoch')
             if row.get(axis) is not None and start.get(axis) is not None}
    found.append({**row, **moved})
  return found


def of_leaf(rows: Sequence[Mapping[str, Any]],
            leaf: str | None) -> list[Mapping[str, Any]]:
  """The rows of one leaf and of no other search; all if it is None.

  >>> rows = [{'phase': 'search/leaf-01'}, {'phase': 'search/leaf-02'},
  ...         {'phase': 'retrain/derived-0'}]
  >>> len(of_leaf(rows, 'search/leaf-02'))
  2
  """
  return [row for row in rows if leaf is None or row.get('phase') == leaf
          or str(row.get('phase')).partition('/')[0] != 'search']


def _curve(rows, name):
  """Returns (x, y, label of x); x is the epoch if every row has one."""
  rows = [row for row in rows if row.get(name) is not None]
  axis = 'epoch' if all(row.get('epoch') is not None for row in rows) else (
      'step')
  return [row[axis] for row in rows], [row[name] for row in rows], axis


def _add_curve(axes, rows, name, **kwargs):
  """Draws a metric if the rows have it; a single point gets a marker."""
  x, y, axis = _curve(rows, name)
  if x:
    marker = {'marker': '.'} if len(x) < 30 else {}
    axes.plot(x, y, linewidth=1.4, **marker, **kwargs)
    axes.set_xlabel(axis)


def _finish(axes, title, ylabel, legend=True):
  axes.set(title=title, ylabel=ylabel)
  if not axes.lines:
    axes.text(0.5, 0.5, 'not recorded', transform=axes.transAxes, ha='center',
              va='center', color='#6b7680')
    axes.set(xticks=[], yticks=[])
  elif legend:
    axes.legend(loc='best')


_SEARCH_PANELS = (
    ('Loss', 'cross-entropy', {
        'train_loss': 'weights, training half',
        'valid_loss': 'architecture half'}),
    ('Accuracy', 'fraction', {
        'train_accuracy': 'weights, training half',
        'valid_accuracy': 'architecture half',
        'derived_accuracy': 'derived network'}),
    ('Entropy of the architecture', 'nats per choice', {
        'alpha_entropy_normal': 'alpha, normal',
        'alpha_entropy_reduce': 'alpha, reduction',
        'beta_entropy_normal': 'beta, normal',
        'beta_entropy_reduce': 'beta, reduction'}),
    ('Top-1 margin', 'p(1st) - p(2nd)', {
        'alpha_margin_normal': 'alpha, normal',
        'alpha_margin_reduce': 'alpha, reduction',
        'beta_margin_normal': 'beta, normal',
        'beta_margin_reduce': 'beta, reduction'}),
    ('Temperature', 'tau', {'tau': 'tau'}),
    ('Operations without weights', 'in the derived cell', {
        'parameterless_normal': 'normal',
        'parameterless_reduce': 'reduction'}),
    ('Changes of the derived cells', 'entries since the last line', {
        'genotype_changes': 'changes'}),
    ('Speed', 'images/s', {'images_per_second': 'images/s'}),
)
# Drawn where they are recorded.
_OTHER_PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ('Probability of no weights', 'mean over sites', {
        'parameterless_share_normal': 'normal',
        'parameterless_share_reduce': 'reduction'}),
    ('Derived cell in the table', 'test accuracy, fraction', {
        'table_accuracy': 'after 200 epochs'}),
    ('Discretisation gap', 'accuracy, supernet - derived', {
        'discretisation_gap': 'gap'}),
    ('Dominant eigenvalue', 'of the Hessian in alpha', {
        'dominant_eigenvalue': 'eigenvalue', 'eigenvalue_bound': 'bound'}),
    ('Weight decay', 'of the weights', {'weight_decay': 'weight decay'}),
)


_WHOLE_NUMBERS = ('parameterless_normal', 'genotype_changes')


def _panels(count, columns, title):
  """A figure and its `count` axes."""
  rows = math.ceil(count / columns)
  figure = matplotlib.figure.Figure(
      figsize=(3.3 * columns, 2.5 * rows + 0.4), facecolor='white',
      layout='constrained')
  figure.suptitle(title, fontsize=12, fontweight='bold', x=0.01, ha='left')
  return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def save_search(path_stem: str | os.PathLike[str],
                rows: Sequence[Mapping[str, Any]],
                title: str = 'Search') -> tuple[pathlib.Path, ...]:
  """Draws the curves of a search to path_stem.svg and path_stem.png.

  Args:
    path_stem: path without the suffix.
    rows: rows of metrics.jsonl; phases other than the search's are ignored.
      Metrics that a method lacks, or that are null, leave gaps.
    title: shown above the curves.

  Returns:
    The two paths.

  Raises:
    UserError: the folder cannot be written.
  """
  rows = search_rows(rows)
  drawn = [*_SEARCH_PANELS, *(
      panel for panel in _OTHER_PANELS
      if any(row.get(key) is not None for key in panel[2] for row in rows))]
  with figures.style():
    figure, panels = _panels(len(drawn), 3, title)
    for axes in panels[len(drawn):]:
      axes.set_axis_off()
    for axes, (name, ylabel, curves) in zip(panels, drawn):
      for colour, (key, label) in zip(figures.COLOURS, curves.items()):
        # Dashes, because two curves may coincide.
        _add_curve(axes, rows, key, label=label, color=colour,
                   linestyle='--' if key.endswith('_reduce') else '-')
      if any(key in curves for key in _WHOLE_NUMBERS):
        axes.yaxis.set_major_locator(
            matplotlib.ticker.MaxNLocator(integer=True))
        axes.set_ylim(0, max(1, axes.get_ylim()[1]))
      _finish(axes, name, ylabel, legend=len(curves) > 1)
    return figures.save(path_stem, figure, title, dpi=150)


_MAPS = tuple(
    (f'{name} of alpha, {cell}', unit, f'alpha_{key}_{cell_type}/')
    for name, key, unit in (('Entropy', 'entropy', 'nats'),
                            ('Margin', 'margin', 'p(1st) - p(2nd)'))
    for cell, cell_type in (('normal', 'normal'), ('reduction', 'reduce')))
# Every column of a map is a rectangle for each edge.
_COLUMNS = 32


def edge_maps(rows: Sequence[Mapping[str, Any]],
              ) -> list[tuple[str, str, list[float], np.ndarray]]:
  """(title, unit, [T] epochs, [edges,T] values) of each map that has data.

  Args:
    rows: rows of metrics.jsonl. Where there are more than 32 lines, 32 of them
      are taken, evenly, with the last.
  """
  rows, found = search_rows(rows), []
  for title, unit, prefix in _MAPS:
    names = sorted({key for row in rows for key in row
                    if key.startswith(prefix)})
    lines = [row for row in rows if names and all(
        row.get(name) is not None for name in names)]
    if lines:
      places = np.unique(np.linspace(
          0, len(lines) - 1, min(len(lines), _COLUMNS)).round().astype(int))
      lines = [lines[place] for place in places]
      found.append((title, unit, _curve(lines, names[0])[0], np.array(
          [[row[name] for row in lines] for name in names])))
  return found


def save_edges(path_stem: str | os.PathLike[str],
               rows: Sequence[Mapping[str, Any]],
               title: str = 'Each edge over the search',
               ) -> tuple[pathlib.Path, ...]:
  """Draws entropy and margin of each edge as maps, SVG and PNG.

  A row that turns dark in entropy is an edge that decides. Where nodes hold
  the operations it is a node.

  Args:
    path_stem: path without the suffix.
    rows: rows of metrics.jsonl; phases other than the search's are ignored.
    title: shown above the maps.

  Returns:
    The two paths; () if no edge was recorded.

  Raises:
    UserError: the folder cannot be written.
  """
  maps = edge_maps(rows)
  if not maps:
    return ()
  with figures.style():
    figure, panels = _panels(len(maps), 2, title)
    for axes in panels[len(maps):]:
      axes.set_axis_off()
    for axes, (name, unit, epochs, values) in zip(panels, maps):
      _add_map(figure, axes, epochs, values, unit)
      axes.set(title=name, xlabel='epoch', ylabel='edge')
    return figures.save(path_stem, figure, title, dpi=150)


def _add_map(figure, axes, epochs, values, unit):
  """Rectangles in eight colours; a column ends where its line was written."""
  top = float(values.max()) or 1.
  norm = matplotlib.colors.BoundaryNorm(np.linspace(0, top, 9), 256)
  mesh = axes.pcolormesh(
      [min(0., epochs[0]), *epochs], np.arange(len(values) + 1) - .5, values,
      norm=norm, cmap='viridis')
  axes.grid(False)
  axes.invert_yaxis()
  axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
  figure.colorbar(mesh, ax=axes, label=unit, format='%.2f')


_TRAINING_PANELS = (
    ('Training loss', 'cross-entropy', 'train_loss'),
    ('Test loss', 'cross-entropy', 'test_loss'),
    ('Training accuracy', 'fraction', 'train_accuracy'),
    ('Test accuracy', 'fraction', 'test_accuracy'),
)


def _kind(name):
  """'random-3' or 'random/seed3' -> 'random': runs that share a colour."""
  return re.sub(r'[-_/](seed[-_=]?)?\d+$', '', name)


def save_training(path_stem: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    title: str = 'Training from scratch') -> tuple[pathlib.Path, ...]:
  """Draws the curves of the runs 'retrain/<name>', SVG and PNG.

  Runs whose names differ only in a final number ('random-0', 'random-1') share
  a colour and a legend entry.

  Args:
    path_stem: path without the suffix.
    rows: rows of metrics.jsonl; other phases are ignored.
    title: shown above the curves.

  Returns:
    The two paths.

  Raises:
    UserError: the folder cannot be written.
  """
  runs: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    phase = row.get('phase', '')
    if phase.startswith('retrain/'):
      runs.setdefault(phase.removeprefix('retrain/'), []).append(row)
  kinds = sorted({_kind(name) for name in runs})
  with figures.style():
    figure, panels = _panels(len(_TRAINING_PANELS), 2, title)
    for axes, (name, ylabel, key) in zip(panels, _TRAINING_PANELS):
      for i, kind in enumerate(kinds):
        same = [run for run in sorted(runs) if _kind(run) == kind]
        label = kind + f' ({len(same)} runs)' * (len(same) > 1)
        for run in same:
          _add_curve(axes, runs[run], key,
                     color=figures.COLOURS[i % len(figures.COLOURS)],
                     label=label if run == same[0] else None, alpha=0.85)
      _finish(axes, name, ylabel)
    return figures.save(path_stem, figure, title, dpi=150)


def curves_svg(panels: Sequence[tuple[str, str, str, Mapping[str, Any]]],
               title: str, *, columns: int = 4,
               description: str | None = None) -> str:
  """Draws any curves.

  Args:
    panels: (title, label of x, label of y, {label: (xs, ys)}) of each.
    title: shown above the panels.
    columns: panels per row.
    description: for the document's metadata, or None.

  Returns:
    An SVG document as text.
  """
  with figures.style():
    figure, axes = _panels(len(panels), columns, title)
    for one, (name, xlabel, ylabel, curves) in zip(axes, panels):
      for colour, (label, (xs, ys)) in zip(figures.COLOURS, curves.items()):
        one.plot(xs, ys, '.-', linewidth=1.4, color=colour, label=label)
      one.set_xlabel(xlabel)
      one.set_ylim(bottom=0)
      _finish(one, name, ylabel, legend=len(curves) > 1)
    for one in axes[len(panels):]:
      one.set_axis_off()
    return figures.svg(figure, title, description)


def save_run(workdir: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]],
             genotype: Genotype | None = None) -> tuple[pathlib.Path, ...]:
  """Draws those of `PICTURES` that a run has data for.

  Args:
    workdir: the run directory.
    rows: rows of metrics.jsonl.
    genotype: a `Genotype`, or None if there is none yet.

  Returns:
    The paths written.

  Raises:
    UserError: the folder cannot be written.
  """
  stems = {name: pathlib.Path(workdir) / name for name in PICTURES}
  phases = {str(row.get('phase', '')).partition('/')[0] for row in rows}
  paths: tuple[pathlib.Path, ...] = ()
  if genotype is not None:
    for name, nodes, concat, title in (
        ('cell_normal', genotype.normal, genotype.normal_concat,
         'Normal cell' if genotype.reduce else 'Cell'),
        ('cell_reduce', genotype.reduce, genotype.reduce_concat,
         'Reduction cell')):
      if nodes:
        paths += cells_lib.save_cell(stems[name], nodes, concat, title,
                           num_inputs=genotype.num_inputs)
  if 'search' in phases:
    paths += save_search(stems['search'], rows)
    paths += save_edges(stems['edges'], rows)
  if 'retrain' in phases:
    paths += save_training(stems['training'], rows)
  return paths
