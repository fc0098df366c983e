"""Files of results and the command that runs every benchmark."""

import json

import pytest

from benchmarks import all as all_benchmarks
from benchmarks import grid, growth, memory, ops, parallel
from rome_jax import errors

CELLS = [{'k': 1}, {'k': 2}]


def row_of(cell, error=None):
  return {**cell, 'seconds': 10 * cell['k'], 'error': error}


def test_a_run_that_was_cut_off_goes_on(tmp_path):
  out = tmp_path / 'rows.json'
  measured = []

  def measure(cell):
    if measured == [{'k': 1}]:
      raise KeyboardInterrupt
    measured.append(cell)
    return row_of(cell)

  with pytest.raises(KeyboardInterrupt):
    grid.measure_all(CELLS, measure, out, 'one')
  assert json.loads(out.read_text()) == {
      'commands': ['one'], 'rows': [row_of({'k': 1})]}
  measured.clear()
  rows = grid.measure_all([*CELLS, {'k': 3}], lambda cell: (
      measured.append(cell), row_of(cell))[1], out, 'two')
  assert measured == [{'k': 2}, {'k': 3}]
  assert rows == [row_of({'k': k}) for k in (1, 2, 3)]
  assert json.loads(out.read_text()) == {
      'commands': ['one', 'two'], 'rows': rows}


def test_a_failure_is_tried_again_and_a_lack_is_not(tmp_path):
  out = tmp_path / 'rows.json'
  messages = {1: 'failed: exit code 1: KeyError', 2: 'not run: too long'}
  first = grid.measure_all(
      CELLS, lambda cell: row_of(cell, messages[cell['k']]), out)
  assert list(map(grid.failed, first)) == [True, False]
  second = grid.measure_all(CELLS, row_of, out)
  assert [row['error'] for row in second] == [None, messages[2]]
  stored = json.loads(out.read_text())['rows']
  assert sorted(row['k'] for row in stored) == [1, 2]


def test_another_file_is_not_overwritten(tmp_path):
  out = tmp_path / 'config.json'
  out.write_text('{"runs": []}')
  with pytest.raises(errors.UserError, match='--out=.*config.json'):
    grid.measure_all(CELLS, row_of, out)
  assert out.read_text() == '{"runs": []}'


CHILD = '''
import json, os, sys, time
cell = json.loads(sys.argv[sys.argv.index('--cell') + 1])
print('noise on stdout')
if cell['k'] == 2: sys.exit('config.search.k=2 is too much')
if cell['k'] == 3: print('one sentence', file=sys.stderr); sys.exit(2)
if cell['k'] == 4: time.sleep(60)
print(json.dumps({**cell, 'error': None, 'flags': os.environ['XLA_FLAGS']}))
'''


def test_children(tmp_path, monkeypatch):
  """A result, a fault, a user's mistake, one that takes too long."""
  (tmp_path / 'child.py').write_text(CHILD)
  monkeypatch.setattr(grid, 'ROOT', tmp_path)
  monkeypatch.setenv('XLA_FLAGS', '--some')
  measure = grid.child('child', limit_seconds=20)
  assert measure({'k': 1}) == {'k': 1, 'error': None, 'flags': '--some'}
  assert measure({'k': 1, 'devices': 4})['flags'] == (
      '--some --xla_force_host_platform_device_count=4')
  assert measure({'k': 2})['error'] == (
      'failed: exit code 1: config.search.k=2 is too much')
  assert measure({'k': 3})['error'] == 'not run: one sentence'
  slow = grid.child('child', limit_seconds=.5)({'k': 4})
  assert slow['error'] == 'not run: took more than 0.5 s'
  assert slow['machine']['cores'] >= 1


def test_the_command_without_what_changes_no_row():
  assert grid.command('m', ['--k=1', '--out', 'f', '--json', '--out=g', '-q']
                      ) == 'python -m m --k=1 -q'


@pytest.mark.parametrize('module,mistake', [
    (parallel, '--ways=scam'), (parallel, '--k=0'), (growth, '--axes=size'),
    (memory, '--columns=snas'), (ops, '--names=sep'), (ops, '--strides=3')])
def test_mistakes_are_one_sentence(module, mistake, capsys):
  assert module.main([mistake]) == errors.UserError.exit_code
  out, err = capsys.readouterr()
  assert not out and err.count('\n') == 1
  assert mistake.partition('=')[2] in err


def test_growth_moves_one_size_at_a_time():
  cells = growth.make_cells(growth._parse([]))
  points = [tuple(cell[name] for name in growth.BASE) for cell in cells]
  base = tuple(growth.BASE.values())
  assert len(set(points)) == len(points) and points[0] == base
  assert all(sum(a != b for a, b in zip(point, base)) == 1
             for point in points[1:])
  for i, (name, values) in enumerate(growth.AXES.items()):
    along = {point[i] for point in points if
             point[:i] + point[i + 1:] == base[:i] + base[i + 1:]}
    assert along == set(values), name


def test_parallel_has_every_way_and_no_cell_twice():
  cells = parallel.make_cells(parallel._parse([]))
  assert len({json.dumps(cell) for cell in cells}) == len(cells)
  assert {cell['way'] for cell in cells} == set(parallel.WAYS)
  assert all(cell['devices'] == (cell['k'] if cell['way'] == 'devices' else 1)
             for cell in cells)


# ----------------------------------------------------------- benchmarks.all


def test_every_part_is_a_benchmark():
  for name in all_benchmarks.PARTS:
    assert (grid.ROOT / 'benchmarks' / f'{name}.py').exists(), name


def test_a_part_that_fails_is_recorded(tmp_path, monkeypatch, capfd):
  folder = tmp_path / 'benchmarks'
  folder.mkdir()
  for name, code in (
      ('good', 'print([1])'), ('bad', 'raise SystemExit(1)'),
      ('half', 'print(\'[{"error": "failed: x"}]\'); raise SystemExit(1)')):
    (folder / f'{name}.py').write_text(code)
  monkeypatch.setattr(grid, 'ROOT', tmp_path)
  monkeypatch.setattr(all_benchmarks, 'PARTS', {
      name: all_benchmarks.Part() for name in ('bad', 'half', 'good')})
  out = tmp_path / 'out'
  assert all_benchmarks.main(['--quick', f'--out={out}']) == 1
  found = json.loads(capfd.readouterr().out)
  assert list(found) == ['bad', 'half', 'good']
  assert found['bad']['result'] is None and found['bad']['error']
  assert found['half']['error'] == 'exit code 1; failed: x'
  assert found['good']['result'] == [1] and found['good']['error'] is None
  assert set(found['good']) == {
      'result', 'machine', 'date', 'seconds', 'error'}
  assert [path.name for path in out.iterdir()] == ['good.json']
  assert json.loads((out / 'good.json').read_text()) == {
      'commands': ['python -m benchmarks.good --quick'], 'rows': [1]}
  assert all_benchmarks.main(['--parts=good', '--quick']) == 0
  assert all_benchmarks.main(['--parts=goof']) == errors.UserError.exit_code


@pytest.mark.slow
def test_every_part_runs(capfd):
  assert all_benchmarks.main(['--quick']) == 0
  found = json.loads(capfd.readouterr().out)
  assert set(found) == set(all_benchmarks.PARTS)
  assert all(part['result'] for part in found.values())
