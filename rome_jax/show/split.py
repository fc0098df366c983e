"""The tree of a supernet that split, and why it did so there."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib.figure
import numpy as np

from rome_jax.show import figures

TREE, DISTANCES = 'split', 'split_distances'  # pictures of a run
_SHORT = {
    'none': 'none', 'skip_connect': 'skip', 'nor_conv_1x1': '1x1',
    'nor_conv_3x3': '3x3', 'avg_pool_3x3': 'avg', 'max_pool_3x3': 'max',
    'sep_conv_3x3': 'sep3', 'sep_conv_5x5': 'sep5', 'dil_conv_3x3': 'dil3',
    'dil_conv_5x5': 'dil5'}


def save(workdir: str | os.PathLike[str],
         tree: Mapping[str, Any]) -> tuple[pathlib.Path, ...]:
  """Draws a run's split.json: the tree, and the distances of each split.

  Args:
    workdir: where the pictures go, as SVG and PNG.
    tree: of `train.leaves`.

  Returns:
    Their paths.

  Raises:
    UserError: the folder cannot be written.
  """
  folder = pathlib.Path(workdir)
  with figures.style():
    paths = figures.save(folder / TREE, _tree(tree), 'Leaves', dpi=150)
    compared = [row for row in tree['splits'] if 'distances' in row]
    if compared:
      paths += figures.save(folder / DISTANCES, _matrices(compared),
                            'Gradient distances', dpi=150)
  return paths


def _shown(group):
  return ', '.join(_SHORT.get(name, name) for name in group)


def _tree(tree):
  leaves, splits = tree['leaves'], {row['name']: row for row in tree['splits']}
  # Leaves stand in the order of the tree, top to bottom.
  depth, rows = 1 + _depth(splits), iter(range(len(leaves)))
  figure = matplotlib.figure.Figure(
      figsize=(3.1 * depth, .8 + .62 * len(leaves)), facecolor='white',
      layout='constrained')
  axes = figure.subplots()
  axes.set(xlim=(-.1, depth), ylim=(len(leaves) - .5, -.5))
  axes.axis('off')

  def draw(name, level):
    """Draws a node and what is under it; its height."""
    row = splits.get(name)
    if row is None:
      y = next(rows)
      _leaf(axes, level, y, leaves[y])
      return y
    heights = [draw(f'{name}-{i + 1}', level + 1)
               for i in range(len(row['groups']))]
    y = float(np.mean(heights))
    _text(axes, level, y, f'{row["where"]}\nafter epoch {row["epoch"]}',
          weight='bold')
    for group, height in zip(row['groups'], heights):
      axes.plot([level + .62, level + .95], [y, height], linewidth=1,
                color=figures.MUTED, zorder=0)
      _text(axes, level + .5, y + .62 * (height - y), _shown(group),
            colour=figures.COLOURS[0])
    return y

  draw('search/root', 0)
  return figure


def _depth(splits):
  return max(name.count('-') + 1 for name in splits)


def _leaf(axes, level, y, leaf):
  score = leaf.get('score')
  if score is None:
    score = leaf.get('valid_accuracy')
  text = leaf['name'].split('/')[-1] + (
      '' if score is None else f': {100 * score:.2f}%')
  chosen = leaf.get('chosen', False)
  _text(axes, level, y, text + ', chosen' * chosen,
        weight='bold' if chosen else 'normal',
        colour=figures.COLOURS[1] if chosen else figures.INK)


def _text(axes, x, y, text, weight='normal', colour=figures.INK):
  axes.text(x, y, text, va='center', fontsize=8, weight=weight, color=colour,
            bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 1.5})


def _matrices(splits):
  """A heat map for each split, its groups side by side."""
  columns = min(4, len(splits))
  lines = -(-len(splits) // columns)
  figure = matplotlib.figure.Figure(
      figsize=(2.9 * columns + .8, 3.1 * lines), facecolor='white',
      layout='constrained')
  grid = figure.subplots(lines, columns, squeeze=False)
  top = max(float(np.max(row['distances'])) for row in splits)
  for axes in grid.flat[len(splits):]:
    axes.axis('off')
  for axes, row in zip(grid.flat, splits):
    order = [row['ops'].index(name) for group in row['groups']
             for name in group]
    names = [_SHORT.get(row['ops'][i], row['ops'][i]) for i in order]
    image = axes.imshow(np.array(row['distances'])[np.ix_(order, order)],
                        vmin=0, vmax=top, cmap='viridis')
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title(f'{row["name"].split("/")[-1]}: {row["where"]}', fontsize=8)
    axes.tick_params(length=0)
    axes.grid(False)
    edge = np.cumsum([len(group) for group in row['groups']])[:-1] - .5
    for at in edge:
      axes.axhline(at, color='white', linewidth=2)
      axes.axvline(at, color='white', linewidth=2)
  figure.colorbar(image, ax=grid, shrink=.8, label='1 - cos')
  return figure
