"""Pictures of cells."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import matplotlib
import matplotlib.figure
import matplotlib.font_manager
import matplotlib.patches
import matplotlib.path
import matplotlib.textpath
import matplotlib.ticker
import numpy as np

from rome_jax.show import figures
from rome_jax.spaces import genotypes

Nodes = Sequence[Sequence[tuple[str, int]]]  # of a Genotype


_WEIGHTS = {'facecolor': '#e1effa', 'edgecolor': '#0072b2'}


_NO_WEIGHTS = {'facecolor': '#fff3df', 'edgecolor': '#d55e00',
               'linestyle': (0, (4, 2))}


_BOX = 20.0  # height of every box


_ROW = 27.0  # between the operations of a node


_BLOCK = 14.0  # gap between elements of a layer


_LANE = 4.0  # height of a lane


_STATE = 24.0  # width of a node's box


_END = 42.0  # width of the boxes of inputs and output


_REACH = 20.0  # distance from an operation's box to its node


_MARGIN, _TITLE, _LEGEND = 14.0, 30.0, 26.0


# Which element goes in which layer, and in which order.


@dataclasses.dataclass(frozen=True)
class _Graph:
  """A cell in layers.

  Attributes:
    ops: per node, its (operation, state) pairs.
    concat: the states that the output joins.
    num_inputs: input states.
    layers: per layer, its elements, top to bottom.
    op_ends: per state, the last layer with an operation that reads it.
  """

  ops: tuple
  concat: tuple
  num_inputs: int
  layers: tuple
  op_ends: tuple

  def node(self, element):
    """The node (0..N-1) of an element, or None."""
    kind, state = element
    is_node = kind == 'state' and state >= self.num_inputs
    return state - self.num_inputs if is_node else None

  def reads(self, element):
    """The states whose lines arrive at an element."""
    node = self.node(element)
    if node is not None:
      return [state for _, state in self.ops[node]]
    return {'out': self.concat, 'lane': element[1:], 'state': ()}[element[0]]

  def height(self, element):
    """The height of an element."""
    node = self.node(element)
    if node is None:
      return _LANE if element[0] == 'lane' else _BOX
    return _BOX + _ROW * max(len(self.ops[node]) - 1, 0)

  def offset(self, element, rank):
    """Where a line arrives, from the middle of an element downwards."""
    node = self.node(element)
    return 0.0 if node is None else _ROW * (
        rank - (len(self.ops[node]) - 1) / 2)


def _graph(nodes, concat, num_inputs):
  """Puts the elements of a cell into layers, in the order of their states.

  Raises:
    ValueError: a node or the output reads a state that does not exist.
  """
  ops = tuple(tuple((str(op), int(p)) for op, p in node) for node in nodes)
  layer = [0] * num_inputs
  for i, node in enumerate(ops):
    for _, p in node:
      if not 0 <= p < num_inputs + i:
        raise ValueError(f'node {i} reads state {p}, which is not before it')
    layer.append(1 + max((layer[p] for _, p in node), default=0))
  concat = tuple(sorted({int(s) for s in concat}))
  if concat and not 0 <= concat[0] <= concat[-1] < len(layer):
    raise ValueError(f'concat={concat} names a state beyond {len(layer) - 1}')
  op_ends = list(layer)
  for i, node in enumerate(ops):
    for _, p in node:
      op_ends[p] = max(op_ends[p], layer[num_inputs + i])
  last = max(layer) + 1
  layers = [[] for _ in range(last)] + [[('out', -1)]]
  for state, start in enumerate(layer):
    layers[start].append(('state', state))
    end = last if state in concat else op_ends[state]
    for i in range(start + 1, end):
      layers[i].append(('lane', state))
  return _Graph(ops, concat, num_inputs, tuple(map(tuple, layers)),
                tuple(op_ends))


def _ranked(graph, left, element):
  """(index in `left`, operation) of an element's lines, top to bottom."""
  place = {state: i for i, (_, state) in enumerate(left)}
  return sorted((place[s], n) for n, s in enumerate(graph.reads(element)))


def _links(graph, i):
  """The lines from layer i to layer i+1, as (from, to, rank at `to`)."""
  left, right = graph.layers[i:i + 2]
  return [(source, j, rank) for j, element in enumerate(right)
          for rank, (source, _) in enumerate(_ranked(graph, left, element))]


def _disorder(graph):
  """(crossings, steepness) of an order of the elements; less is better."""
  crossings, steepness = 0, 0.0
  for i in range(len(graph.layers) - 1):
    sizes = [len(layer) for layer in graph.layers[i:i + 2]]
    links = sorted(_links(graph, i))
    # Lines into the output all end in one box and never cross.
    if i < len(graph.layers) - 2:
      crossings += sum(a[0] < b[0] and a[1:] > b[1:]
                       for n, b in enumerate(links) for a in links[:n])
    steepness += sum(
        abs((a + 0.5) / sizes[0] - (b + 0.5) / sizes[1]) for a, b, _ in links)
  return crossings, steepness


def _moves(graph):
  """The graphs with one element, or all lanes of a state, moved.

  Elements move within their layers; inputs stay.
  """
  for i, layer in enumerate(graph.layers):
    for a in range(len(layer) if i else 0):
      for b in range(len(layer)):
        rest = layer[:a] + layer[a + 1:]
        moved = rest[:b] + (layer[a],) + rest[b:]
        if moved != layer:
          yield dataclasses.replace(graph, layers=(
              graph.layers[:i] + (moved,) + graph.layers[i + 1:]))
  for lane in sorted({e for layer in graph.layers for e in layer
                      if e[0] == 'lane'}):
    for first in (True, False):
      yield dataclasses.replace(graph, layers=tuple(
          _to_edge(layer, lane, first) for layer in graph.layers))


def _to_edge(layer, element, first):
  """The layer with an element, if it is there, moved to its top or bottom."""
  return tuple(sorted(layer, key=lambda other: (other == element) != first))


def _untangle(graph):
  """Moves elements one by one as long as that removes crossings."""
  best = _disorder(graph)
  while True:
    found = min(((_disorder(g), n, g) for n, g in enumerate(_moves(graph))),
                default=None)
    if found is None or found[0] >= best:
      return graph
    best, graph = found[0], found[2]


# Where everything is drawn.


def _separate(wanted, weights, gaps):
  """Returns the places nearest to the wanted ones that keep the gaps.

  Least squares under y[i+1] - y[i] >= gaps[i], by pooling adjacent violators.
  """
  shift = np.concatenate([[0.0], np.cumsum(gaps)])
  pools = []
  for value, weight in zip(np.asarray(wanted) - shift, weights):
    pools.append([value, weight, 1])
    while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
      (a, v, m), (b, w, n) = pools[-2:]
      pools[-2:] = [[(a * v + b * w) / (v + w), v + w, m + n]]
  return np.concatenate([[value] * n for value, _, n in pools]) + shift


def _places(graph, sweeps=40):
  """Per layer, the heights of its elements' middles, from the top down.

  Each sweep moves the elements of a layer to the mean height of their
  neighbours. Lanes weigh more, to straighten long lines.
  """
  gaps = [[(graph.height(a) + graph.height(b)) / 2 + _BLOCK
           for a, b in zip(layer, layer[1:])] for layer in graph.layers]
  places = [np.concatenate([[0.0], np.cumsum(gap)]) for gap in gaps]
  places = [y - y.mean() for y in places]
  links = [_links(graph, i) for i in range(len(graph.layers) - 1)]
  order = list(range(len(graph.layers)))
  for sweep in range(sweeps):
    for i in order if sweep % 2 else order[::-1]:
      layer = graph.layers[i]
      total, weights = np.zeros(len(layer)), np.full(len(layer), 1e-6)
      for j in (i - 1, i):
        if not 0 <= j < len(links):
          continue
        for a, b, rank in links[j]:
          element = graph.layers[j + 1][b]
          offset = graph.offset(element, rank)
          lanes = (graph.layers[j][a][0] == 'lane') + (element[0] == 'lane')
          weight = (1.0, 3.0, 9.0)[lanes]
          mine, other = (b, places[j][a] - offset) if j < i else (
              a, places[j + 1][b] + offset)
          total[mine] += weight * other
          weights[mine] += weight
      wanted = (total + 1e-6 * places[i]) / weights
      places[i] = _separate(wanted, weights, gaps[i])
  return places


@dataclasses.dataclass(frozen=True)
class _Box:
  """A rounded box around (x, y); `look` is its patch's style."""

  x: float
  y: float
  width: float
  label: str
  look: dict
  index: str = ''  # small and low after the label


@dataclasses.dataclass(frozen=True)
class _Line:
  """A line that leaves (x0, y0) and arrives at (x1, y1) horizontally."""

  x0: float
  y0: float
  x1: float
  y1: float
  colour: str
  arrow: bool = False


@dataclasses.dataclass(frozen=True)
class _Layout:
  """A drawn cell: its size, boxes and lines; y grows downwards."""

  width: float
  height: float
  boxes: tuple
  lines: tuple


_STATE_LOOK = {'facecolor': '#eef1f4', 'edgecolor': figures.INK}


def _label(graph, state):
  """(label, index) of the box of a state or, for -1, of the output."""
  if state < 0:
    return 'c', 'k'
  if state < graph.num_inputs:
    return 'c', f'k−{graph.num_inputs - state}'
  return str(state - graph.num_inputs), ''


def _columns(graph, places, op_width):
  """Per layer, the x where it starts and ends."""
  spans, x = [], _MARGIN
  last = len(graph.layers) - 1
  for i in range(last + 1):
    width = _END if i in (0, last) else op_width + _REACH + _STATE
    spans.append((x, x + width))
    rises = [abs(places[i][a] - places[i + 1][b]
                 - graph.offset(graph.layers[i + 1][b], rank))
             for a, b, rank in (_links(graph, i) if i < last else ())]
    x += width + min(max(0.5 * max(rises, default=0.0), 34.0), 80.0)
  return spans


def _layout(nodes, concat, num_inputs=2):
  """Computes the layout of a cell."""
  graph = _untangle(_graph(nodes, concat, num_inputs))
  places = _places(graph)
  names = [op for node in graph.ops for op, _ in node]
  op_width = 18.0 + max((_text_width(name) for name in names), default=0.0)
  spans = _columns(graph, places, op_width)
  edges = [y + sign * graph.height(element) / 2
           for ys, layer in zip(places, graph.layers)
           for y, element in zip(ys, layer) for sign in (-1, 1)]
  top = _MARGIN + _TITLE - min(edges)
  places = [ys + top for ys in places]
  boxes, lines = [], []
  for i in range(len(graph.layers)):
    more = _draw_layer(graph, i, places[i], spans[i], op_width)
    boxes += more[0]
    lines += more[1]
    lines += _draw_links(graph, i, places, spans)
  return _Layout(spans[-1][1] + _MARGIN,
                 max(edges) + top + _LEGEND + _MARGIN,
                 tuple(boxes), tuple(lines))


def _draw_layer(graph, i, places, span, op_width):
  """Returns the boxes and lines within layer i."""
  boxes, lines = [], []
  for element, y in zip(graph.layers[i], places):
    kind, state = element
    node = graph.node(element)
    if kind == 'lane':
      colour = figures.INK if graph.op_ends[state] > i else figures.MUTED
      lines.append(_Line(span[0], y, span[1], y, colour))
      continue
    width = _END if node is None else _STATE
    label, index = _label(graph, state)
    boxes.append(_Box(
        span[1] - width / 2, y, width, label, _STATE_LOOK, index))
    if node is None:
      continue
    # Place every operation's box at the rank where its line arrives.
    for rank, (_, n) in enumerate(_ranked(graph, graph.layers[i - 1], element)):
      name = graph.ops[node][n][0]
      look = _NO_WEIGHTS if name in genotypes.PARAMETERLESS else _WEIGHTS
      height = y + graph.offset(element, rank)
      boxes.append(_Box(span[0] + op_width / 2, height, op_width, name, look))
      lines.append(_Line(span[0] + op_width, height, span[1] - _STATE, y,
                         figures.INK, arrow=True))
  return boxes, lines


def _draw_links(graph, i, places, spans):
  """Returns the lines from layer i to the next one."""
  lines = []
  if i + 1 == len(graph.layers):
    return lines
  for a, b, rank in _links(graph, i):
    element = graph.layers[i + 1][b]
    to_op = graph.node(element) is not None or (
        element[0] == 'lane' and graph.op_ends[element[1]] > i + 1)
    lines.append(_Line(
        spans[i][1], places[i][a], spans[i + 1][0],
        places[i + 1][b] + graph.offset(element, rank),
        figures.INK if to_op else figures.MUTED, arrow=element[0] == 'out'))
  return sorted(lines, key=lambda line: line.colour == figures.INK)


def _text_width(text, size=9.0):
  """The width of a label, in points."""
  font = matplotlib.font_manager.FontProperties(family='DejaVu Sans')
  path = matplotlib.textpath.TextPath((0, 0), text, size=size, prop=font)
  return float(path.get_extents().width)


# The figure.


def _add_line(axes, line):
  middle = (line.x0 + line.x1) / 2
  path = matplotlib.path.Path(
      [(line.x0, line.y0), (middle, line.y0), (middle, line.y1),
       (line.x1, line.y1)],
      [matplotlib.path.Path.MOVETO] + [matplotlib.path.Path.CURVE4] * 3)
  axes.add_patch(matplotlib.patches.PathPatch(
      path, facecolor='none', edgecolor=line.colour, linewidth=1.1, zorder=1))
  if line.arrow:
    x, y = line.x1, line.y1
    axes.add_patch(matplotlib.patches.Polygon(
        [(x, y), (x - 6, y - 2.6), (x - 6, y + 2.6)], facecolor=line.colour,
        edgecolor='none', zorder=2))


def _add_text(axes, x, y, text, **kwargs):
  """Writes plain text; a dollar sign does not start mathematics."""
  axes.text(x, y, text, parse_math=False, zorder=4,
            **{'color': figures.INK, 'ha': 'center', 'va': 'center', **kwargs})


def _add_box(axes, box, height=_BOX):
  axes.add_patch(matplotlib.patches.FancyBboxPatch(
      (box.x - box.width / 2, box.y - height / 2), box.width, height,
      boxstyle=matplotlib.patches.BoxStyle('Round', pad=0, rounding_size=5),
      linewidth=1.2, zorder=3, **box.look))
  if not box.index:
    _add_text(axes, box.x, box.y, box.label)
    return
  left = box.x + 2.5 - _text_width(box.index, 7.0) / 2
  _add_text(axes, left, box.y, box.label, ha='right')
  _add_text(axes, left + 0.8, box.y + 3.0, box.index, ha='left', fontsize=7.0)


def _cell_figure(nodes, concat, title, num_inputs=2):
  """Returns the figure of a cell; call and save within `figures.style`."""
  layout = _layout(nodes, concat, num_inputs)
  figure = matplotlib.figure.Figure(
      figsize=(layout.width / 72, layout.height / 72), facecolor='white')
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set_axis_off()
  axes.set(xlim=(0, layout.width), ylim=(layout.height, 0))
  for line in layout.lines:
    _add_line(axes, line)
  for box in layout.boxes:
    _add_box(axes, box)
  _add_text(axes, _MARGIN, _MARGIN + 6, title, ha='left', fontsize=11.0,
            fontweight='bold')
  x, y = _MARGIN + 12, layout.height - _MARGIN - 4
  for look, text in ((_WEIGHTS, 'with weights'), (_NO_WEIGHTS, 'no weights')):
    _add_box(axes, _Box(x, y, 22.0, '', look), height=12.0)
    _add_text(axes, x + 17, y, text, ha='left', fontsize=8.0)
    x += 95
  return figure


def cell_svg(nodes: Nodes, concat: Sequence[int], title: str, *,
             num_inputs: int = 2) -> str:
  """Draws a cell.

  Args:
    nodes: per node, (operation name, state) pairs; states count the inputs
      first, as in a `Genotype`.
    concat: the states that the output joins.
    title: shown above the cell.
    num_inputs: number of input states of the cell.

  Returns:
    An SVG document as text; equal arguments give equal documents.

  Raises:
    ValueError: a node or the output reads a state that is not there.
  """
  with figures.style():
    return figures.svg(_cell_figure(nodes, concat, title, num_inputs), title)


def save_cell(path_stem: str | os.PathLike[str], nodes: Nodes,
              concat: Sequence[int], title: str, *,
              num_inputs: int = 2) -> tuple[pathlib.Path, ...]:
  """Writes the picture of `cell_svg` to path_stem.svg and path_stem.png.

  Returns:
    The two paths.

  Raises:
    UserError: the folder cannot be written.
    ValueError: a node or the output reads a state that is not there.
  """
  with figures.style():
    figure = _cell_figure(nodes, concat, title, num_inputs)
    return figures.save(path_stem, figure, title, dpi=200)
