"""Pictures: nothing overlaps, everything is there, equal bytes each time."""

import random
import struct
import subprocess
import sys
import xml.etree.ElementTree

import matplotlib
import numpy as np
import pytest

from rome_jax import errors
from rome_jax.show import cells as cells_lib
from rome_jax.show import curves, figures

SEP, DIL, SKIP, POOL = (
    'sep_conv_3x3', 'dil_conv_5x5', 'skip_connect', 'max_pool_3x3')
OPS = (SEP, DIL, SKIP, POOL)


def pairs(*flat):
  return tuple(zip(flat[::2], flat[1::2], strict=True))


CELLS = {
    'darts_v2': (tuple(zip(*[iter((
        (SEP, 0), (SEP, 1), (SEP, 0), (SEP, 1), (SEP, 1), (SKIP, 0),
        (SKIP, 0), (DIL, 2)))] * 2)), range(2, 6)),
    'same edge twice': (((pairs(SEP, 0, SKIP, 0)), pairs(SEP, 2, SEP, 2)),
                        (2, 3)),
    'skip chain': (tuple(pairs(SKIP, i + 1, SKIP, 0) for i in range(4)),
                   (2, 3, 4, 5)),
    'one operation': ((pairs(SEP, 1),), (2,)),
    'inputs in the output, a loose node': (
        (pairs(SEP, 0, POOL, 1), pairs(DIL, 1, DIL, 2)), (0, 1, 2)),
    'empty node': (((), pairs(SEP, 2)), (3,)),
    'no output': ((pairs(SEP, 0),), ()),
}


def random_cell(seed):
  rng = random.Random(seed)
  nodes = tuple(
      tuple((rng.choice(OPS), rng.randrange(2 + i))
            for _ in range(rng.randint(1, 3)))
      for i in range(rng.randint(1, 6)))
  return nodes, range(2, 2 + len(nodes))


def layouts():
  for nodes, concat in CELLS.values():
    yield nodes, concat, cells_lib._layout(nodes, concat)
  for seed in range(8):
    nodes, concat = random_cell(seed)
    yield nodes, concat, cells_lib._layout(nodes, concat)


def bezier(line, points=41):
  """Points of the cubic with control points half-way, both end tangents flat.

  x(t) and y(t) written out from the Bernstein polynomials.
  """
  t = np.linspace(0, 1, points)
  middle = (line.x0 + line.x1) / 2
  x = (1 - t)**3 * line.x0 + 3 * t * (1 - t) * middle + t**3 * line.x1
  y = ((1 - t)**3 + 3 * t * (1 - t)**2) * line.y0 + (
      t**3 + 3 * t**2 * (1 - t)) * line.y1
  return x, y


def test_boxes_overlap_neither_boxes_nor_lines_nor_the_frame():
  half = cells_lib._BOX / 2
  for _, _, layout in layouts():
    boxes = layout.boxes
    for i, a in enumerate(boxes):
      assert a.width / 2 <= a.x <= layout.width - a.width / 2
      assert half + cells_lib._TITLE <= a.y
      assert a.y <= layout.height - half - cells_lib._LEGEND
      for b in boxes[:i]:
        assert (abs(a.x - b.x) > (a.width + b.width) / 2 + 1
                or abs(a.y - b.y) > 2 * half + 1)
      for line in layout.lines:
        x, y = bezier(line)
        inside = (abs(x - a.x) < a.width / 2 - 1) & (abs(y - a.y) < half + 1)
        assert not inside.any(), (a, line)


def test_every_operation_and_state_has_one_box():
  for nodes, _, layout in layouts():
    found = sorted(box.label + box.index for box in layout.boxes)
    ops = [op for node in nodes for op, _ in node]
    states = [str(i) for i in range(len(nodes))]
    assert found == sorted(ops + states + ['ck−2', 'ck−1', 'ck'])


def test_lines_lead_from_the_right_state_to_the_right_operation():
  """Follows the lines backwards from every box, whatever layout made them."""
  for nodes, concat, layout in layouts():
    boxes = layout.boxes

    def sources(x, y, boxes=boxes, lines=layout.lines):
      found = []
      for line in lines:
        if abs(line.x1 - x) < 1e-6 and abs(line.y1 - y) < 1e-6:
          starts = [b for b in boxes
                    if abs(b.x + b.width / 2 - line.x0) < 1e-6
                    and abs(b.y - line.y0) < 1e-6]
          found += starts or sources(line.x0, line.y0)
      return found

    def arriving(box, sources=sources):
      return sources(box.x - box.width / 2, box.y)

    names = ['ck−2', 'ck−1'] + [str(i) for i in range(len(nodes))]
    for box in boxes:
      if box.label.isdigit():
        got = sorted((op.label, arriving(op)[0].label + arriving(op)[0].index)
                     for op in arriving(box))
        want = sorted((op, names[p]) for op, p in nodes[int(box.label)])
        assert got == want
      elif box.index == 'k':
        assert sorted(b.label + b.index for b in arriving(box)) == sorted(
            names[s] for s in concat)


def test_labels_fit_their_boxes():
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  nodes = (pairs('a_very_long_operation_name_7x7', 0, SEP, 1),)
  with figures.style():
    figure = cells_lib._cell_figure(nodes, (2,), 'Title')
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = figure.axes[0].texts
    extents = [text.get_window_extent(renderer) for text in texts]
    for i, a in enumerate(extents):
      assert a.x0 > 0 and a.y0 > 0
      assert a.x1 < figure.bbox.x1 and a.y1 < figure.bbox.y1
      for b in extents[:i]:
        apart = a.x0 >= b.x1 or b.x0 >= a.x1 or a.y0 >= b.y1 or b.y0 >= a.y1
        small = {len(texts[i].get_text()), 1}  # c and its index may touch
        assert apart or 1 in small or len(texts[i].get_text()) < 4
    pixels = figure.dpi / 72
    for box in cells_lib._layout(nodes, (2,)).boxes:
      for text, extent in zip(texts, extents):
        if text.get_text() == box.label and len(box.label) > 1:
          assert extent.width < box.width * pixels


def test_parameterless_operations_look_different():
  layout = cells_lib._layout(*CELLS['darts_v2'])
  looks = {box.label: box.look for box in layout.boxes}
  assert 'linestyle' in looks[SKIP] and 'linestyle' not in looks[SEP]
  assert looks[SKIP]['facecolor'] != looks[SEP]['facecolor']
  assert looks[DIL] == looks[SEP]


def test_few_crossings():
  """DARTS_V2's normal cell can be drawn with 4 crossings, the chain with 1."""
  for name, most in (('darts_v2', 4), ('skip chain', 1), ('one operation', 0)):
    nodes, concat = CELLS[name]
    graph = cells_lib._untangle(cells_lib._graph(nodes, concat, 2))
    assert cells_lib._disorder(graph)[0] <= most, name


def test_separate_is_the_constrained_least_squares_solution():
  rng = np.random.default_rng(0)
  for _ in range(20):
    wanted, weights = rng.normal(size=4) * 3, rng.uniform(0.5, 2, 4)
    gaps = rng.uniform(0.1, 1, 3)
    y = cells_lib._separate(wanted, weights, gaps)
    assert (np.diff(y) >= gaps - 1e-9).all()

    def cost(x, wanted=wanted, weights=weights):
      return (weights * (x - wanted)**2).sum()

    # No feasible neighbour is better; the problem is convex.
    for _ in range(50):
      other = y + 0.01 * rng.normal(size=4)
      if (np.diff(other) >= gaps).all():
        assert cost(y) <= cost(other) + 1e-12


@pytest.mark.parametrize('name', CELLS)
def test_cell_svg_is_xml_with_its_labels(name):
  nodes, concat = CELLS[name]
  svg = cells_lib.cell_svg(nodes, concat, 'A <b> & $x$')
  root = xml.etree.ElementTree.fromstring(svg)
  assert root.tag == '{http://www.w3.org/2000/svg}svg'
  words = [text.text for text in root.iter('{http://www.w3.org/2000/svg}text')]
  for node in nodes:
    for op, _ in node:
      assert op in words
  assert 'A <b> & $x$' in words and 'no weights' in words
  assert svg == cells_lib.cell_svg(nodes, concat, 'A <b> & $x$')
  assert 'date' not in svg.lower() and matplotlib.__version__ not in svg


@pytest.mark.parametrize('nodes, concat', [
    ((pairs(SEP, 2),), (2,)), ((pairs(SEP, -1),), (2,)),
    ((pairs(SEP, 0),), (3,)), ((pairs(SEP, 0),), (-1,))])
def test_states_that_are_not_there(nodes, concat):
  with pytest.raises(ValueError, match='state'):
    cells_lib.cell_svg(nodes, concat, '')


def test_one_input():
  assert 'k−1' in cells_lib.cell_svg((pairs(SEP, 0),), (1,), '', num_inputs=1)


def png_size(path):
  data = path.read_bytes()
  assert data[:8] == b'\x89PNG\r\n\x1a\n'
  return struct.unpack('>II', data[16:24])


def test_save_cell(tmp_path):
  nodes, concat = CELLS['darts_v2']
  svg, png = cells_lib.save_cell(tmp_path / 'v1.5', nodes, concat, 'Normal')
  assert (svg.name, png.name) == ('v1.5.svg', 'v1.5.png')
  assert svg.read_text() == cells_lib.cell_svg(nodes, concat, 'Normal')
  layout = cells_lib._layout(nodes, concat)
  assert png_size(png) == pytest.approx(
      (layout.width / 72 * 200, layout.height / 72 * 200), abs=2)
  before = png.read_bytes()
  cells_lib.save_cell(tmp_path / 'v1.5', nodes, concat, 'Normal')
  assert png.read_bytes() == before


def test_global_state_is_left_alone(tmp_path):
  def settings():  # looking at the backend would choose one
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams
            if name != 'backend'}

  with matplotlib.rc_context({'font.size': 33.0, 'svg.hashsalt': 'mine'}):
    before = settings()
    cells_lib.save_cell(tmp_path / 'x', *CELLS['one operation'], '')
    assert settings() == before
    size = png_size(tmp_path / 'x.png')
    svg = (tmp_path / 'x.svg').read_bytes()
  cells_lib.save_cell(tmp_path / 'x', *CELLS['one operation'], '')
  assert size == png_size(tmp_path / 'x.png')
  assert svg == (tmp_path / 'x.svg').read_bytes()


def test_pyplot_is_never_imported():
  code = '''
import sys
from rome_jax.show import cells
cells.cell_svg(((('sep_conv_3x3', 0),),), (2,), '')
assert 'matplotlib.pyplot' not in sys.modules
'''
  subprocess.run([sys.executable, '-W', 'error', '-c', code], check=True)


def test_unwritable_folder(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='cannot write'):
    cells_lib.save_cell(tmp_path / 'file' / 'x', *CELLS['one operation'], '')


def search_rows(**missing):
  names = [name for _, _, curves in curves._SEARCH_PANELS for name in curves]
  return [{'phase': 'search', 'step': step, 'epoch': step / 2,
           **{name: step * 1.0 for name in names}, **missing}
          for step in range(3)]


def texts(path):
  root = xml.etree.ElementTree.parse(path).getroot()
  return [text.text for text in root.iter('{http://www.w3.org/2000/svg}text')]


def test_save_search(tmp_path):
  svg, png = curves.save_search(tmp_path / 'search', search_rows())
  words = texts(svg)
  assert words.count('beta, reduction') == 2 and words.count('epoch') == 8
  assert 'not recorded' not in words
  assert png_size(png) in ((1485, 1185), (1484, 1185))


def test_save_search_without_beta_nulls_and_nothing(tmp_path):
  rows = search_rows(beta_entropy_normal=None, beta_entropy_reduce=None,
                     tau=None, epoch=None)
  words = texts(curves.save_search(tmp_path / 'a', rows)[0])
  assert words.count('beta, normal') == 1 and 'step' in words
  assert words.count('not recorded') == 1
  words = texts(curves.save_search(tmp_path / 'b', [{'phase': 'other'}])[0])
  assert words.count('not recorded') == 8


def test_panels_of_what_is_measured_where_asked(tmp_path):
  rows = search_rows(discretisation_gap=.25, dominant_eigenvalue=.5)
  svg, png = curves.save_search(tmp_path / 'a', rows)
  words = texts(svg)
  assert 'Discretisation gap' in words and 'Dominant eigenvalue' in words
  assert 'Weight decay' not in words and words.count('epoch') == 10
  # A fourth row of panels; an older matplotlib rounds down.
  assert png_size(png) in ((1485, 1560), (1484, 1560))


def test_parts_of_a_search_follow_each_other():
  rows = [{'phase': phase, 'step': step, 'epoch': step / 4, 'loss': step}
          for phase in ('search/stage-1', 'retrain/a', 'search/stage-2')
          for step in (4, 10)]
  found = curves.search_rows(rows)
  assert [row['step'] for row in found] == [4, 10, 14, 20]
  assert [row['epoch'] for row in found] == [1., 2.5, 3.5, 5.]
  assert [row['loss'] for row in found] == [4, 10, 4, 10]


def edge_rows(lines=50, edges=3):
  return [{'phase': 'search', 'step': step, 'epoch': step / 10,
           **{f'alpha_entropy_normal/{edge:02d}': edge + step / 1000
              for edge in range(edges)}}
          for step in range(1, lines + 1)]


def test_maps_of_edges(tmp_path):
  """The values are those of the lines, evenly chosen, the last among them."""
  (title, unit, epochs, values), = curves.edge_maps(edge_rows())
  assert title == 'Entropy of alpha, normal' and unit == 'nats'
  assert values.shape == (3, 32) and epochs[-1] == 5.
  for edge in range(3):
    np.testing.assert_allclose(values[edge], edge + np.array(epochs) / 100)
  assert np.diff(epochs).min() > .09 and np.diff(epochs).max() < .21
  svg, _ = curves.save_edges(tmp_path / 'edges', edge_rows())
  text = svg.read_text()
  assert 'Entropy of alpha, normal' in texts(svg)
  assert 'data:' not in text  # no pixels in it
  before = svg.read_bytes()
  curves.save_edges(tmp_path / 'edges', edge_rows())
  assert svg.read_bytes() == before
  assert curves.save_edges(tmp_path / 'none', search_rows()) == ()
  curves.save_edges(tmp_path / 'one', edge_rows(lines=1, edges=1))


def test_save_training_groups_runs(tmp_path):
  rows = [{'phase': f'retrain/{name}', 'step': step, 'train_loss': 1.0}
          for name in ('random-0', 'random-1', 'DARTS_V1') for step in (1, 2)]
  words = texts(curves.save_training(tmp_path / 'training', rows)[0])
  assert 'random (2 runs)' in words and 'DARTS_V1' in words
  assert words.count('not recorded') == 3


def test_save_run_draws_what_there_is(tmp_path):
  assert curves.save_run(tmp_path, []) == ()
  rows = search_rows() + [{'phase': 'retrain/a', 'step': 1, 'test_loss': 1.}]
  curves.save_run(tmp_path, rows)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
      'search.png', 'search.svg', 'training.png', 'training.svg']
