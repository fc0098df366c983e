"""How a supernet ranks architectures, and how a search over them went."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from rome_jax.show import figures

# From this number on points are one picture in the SVG.
_RASTER_FROM = 2000


def save_scatter(path_stem: str | os.PathLike[str], scores: Any, values: Any,
                 title: str, xlabel: str, ylabel: str,
                 ) -> tuple[pathlib.Path, ...]:
  """Draws a point per architecture to path_stem.svg and path_stem.png.

  Args:
    path_stem: path without the suffix.
    scores: [N] of the architectures, to the right.
    values: [N] what they were compared with, upwards.
    title, xlabel, ylabel: texts.

  Returns:
    The two paths.

  Raises:
    UserError: the folder cannot be written.
  """
  scores, values = np.asarray(scores), np.asarray(values)
  best = int(np.argmax(scores))
  with figures.style():
    figure, axes = _axes(title, xlabel, ylabel)
    axes.plot(scores, values, '.', markersize=4, color=figures.COLOURS[0],
              alpha=min(.7, max(.08, 6 / len(scores)**.5)),
              markeredgewidth=0, rasterized=len(scores) >= _RASTER_FROM)
    axes.plot(scores[best], values[best], 'o', color=figures.COLOURS[1],
              markersize=6, label='best by score')
    axes.axhline(values.max(), color=figures.MUTED, linewidth=1,
                 linestyle='--', label='best of these')
    axes.legend(loc='lower right')
    return figures.save(path_stem, figure, title, dpi=150)


def save_history(path_stem: str | os.PathLike[str],
                 rows: Sequence[Mapping[str, Any]],
                 title: str = 'Search over architectures',
                 ) -> tuple[pathlib.Path, ...]:
  """Draws the rounds of a search over architectures, SVG and PNG.

  Args:
    path_stem: path without the suffix.
    rows: of `methods.evolve.history`.
    title: shown above.

  Returns:
    The two paths.

  Raises:
    UserError: the folder cannot be written.
  """
  x, best, mean, so_far = (
      [row[name] for row in rows]
      for name in ('scored', 'best', 'mean', 'best_so_far'))
  with figures.style():
    figure, axes = _axes(title, 'architectures scored', 'score')
    axes.plot(x, so_far, drawstyle='steps-post', color=figures.COLOURS[0],
              label='best so far')
    axes.plot(x, best, '.', color=figures.COLOURS[1], label='best of a round')
    axes.plot(x, mean, color=figures.COLOURS[2], label='mean of a round')
    axes.legend(loc='lower right')
    return figures.save(path_stem, figure, title, dpi=150)


def _axes(title, xlabel, ylabel):
  figure = matplotlib.figure.Figure(
      figsize=(6, 4.2), facecolor='white', layout='constrained')
  axes = figure.subplots()
  axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
  return figure, axes
