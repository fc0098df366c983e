"""The style of all pictures, and how they are saved."""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.font_manager
import matplotlib.patches
import matplotlib.path
import matplotlib.textpath
import matplotlib.ticker

from rome_jax import files

_STYLE: dict[Any, Any] = {
    'svg.hashsalt': 'rome_jax',  # makes ids reproducible
    'svg.fonttype': 'none',  # text stays text: small, searchable
    'font.size': 9.0,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.color': '#e3e6ea',
    'axes.axisbelow': True,
    'axes.titlesize': 10.0,
    'axes.edgecolor': '#8a929c',
    'legend.frameon': False,
    'legend.fontsize': 8.0,
}


INK, MUTED = '#1f2933', '#9aa5b1'


# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9',
            '#000000')


@contextlib.contextmanager
def style() -> Iterator[None]:
  """Applies this style to matplotlib's defaults, ignoring the matplotlibrc."""
  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(_STYLE)
    yield


def svg(figure: matplotlib.figure.Figure, title: str,
        description: str | None = None) -> str:
  """Returns the figure as an SVG document without dates or versions."""
  buffer = io.StringIO()
  figure.savefig(buffer, format='svg', metadata={
      'Title': title, 'Description': description, 'Date': None,
      'Creator': None, 'Format': None, 'Type': None})
  return buffer.getvalue()


def save(path_stem: str | os.PathLike[str], figure: matplotlib.figure.Figure,
         title: str, dpi: int) -> tuple[pathlib.Path, ...]:
  """Writes path_stem.svg and path_stem.png and returns the two paths."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=dpi, metadata={'Software': None})
  stem = pathlib.Path(path_stem)
  paths = tuple(stem.with_name(stem.name + end) for end in ('.svg', '.png'))
  files.write_bytes(paths[0], svg(figure, title).encode())
  files.write_bytes(paths[1], buffer.getvalue())
  return paths
