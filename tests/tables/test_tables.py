"""The shipped tables, the forms of their networks, and the lookups."""

import itertools
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from rome_jax import errors
from rome_jax.spaces import genotypes
from rome_jax.spaces import nasbench201_forms as forms
from rome_jax.tables import macro, nasbench201, table

ROOT = pathlib.Path(__file__).parents[2]
DATASETS = nasbench201.DATASETS


@pytest.fixture(scope='module')
def nb201():
  return nasbench201.load()


# --- The forms of a NAS-Bench-201 cell

# The first, tenth and 124th cell, which the authors' generator asserts
# (AutoDL-Projects, exps/NAS-Bench-201/main.py), and the last optimum.
KNOWN = {
    0: '|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|'
       '+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|',
    9: '|avg_pool_3x3~0|+|none~0|none~1|'
       '+|skip_connect~0|none~1|nor_conv_3x3~2|',
    123: '|avg_pool_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|'
         '+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|',
    857: '|nor_conv_1x1~0|+|nor_conv_1x1~0|nor_conv_3x3~1|'
         '+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|',
}


@pytest.mark.parametrize('index', KNOWN)
def test_the_authors_numbering(index):
  assert forms.to_string(index) == KNOWN[index]
  assert forms.to_index(KNOWN[index]) == index


def test_all_cells_survive_all_forms():
  cells = set()
  for index in range(forms.NUM_CELLS):
    ops = forms.from_index(index)
    cells.add(ops)
    assert forms.from_string(forms.to_string(ops)) == ops
    assert forms.from_code(forms.to_code(ops)) == ops
    assert forms.from_genotype(forms.to_genotype(ops)) == ops
    assert forms.to_index(ops) == index
  assert cells == set(itertools.product(range(5), repeat=6))


def test_every_form_is_taken_by_every_function():
  cell = forms.from_index(857)
  for shape in (KNOWN[857], forms.to_code(857), 857, np.int64(857),
                list(cell), np.array(cell), forms.to_genotype(857)):
    assert forms.parse(shape) == cell
    assert forms.to_string(shape) == KNOWN[857]


def test_the_code_is_the_operations_in_the_order_of_the_edges():
  assert forms.OPS == ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3',
                       'avg_pool_3x3')
  assert forms.EDGES == ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))
  assert forms.to_string('012340') == (
      '|none~0|+|skip_connect~0|nor_conv_1x1~1|'
      '+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|')


def test_the_genotype_is_the_packages_value():
  assert forms.to_genotype('012340') == genotypes.Genotype(
      normal=((('none', 0),), (('skip_connect', 0), ('nor_conv_1x1', 1)),
              (('nor_conv_3x3', 0), ('avg_pool_3x3', 1), ('none', 2))),
      normal_concat=(3,), reduce=(), reduce_concat=())


def test_pairs_of_a_genotype_may_come_in_any_order():
  cell = forms.to_genotype('012340')
  mixed = cell._replace(normal=tuple(
      tuple(reversed(node)) for node in cell.normal))
  assert forms.to_code(mixed) == '012340'


GENOTYPE = forms.to_genotype('012340')


@pytest.mark.parametrize('cell, words', [
    ('01234', '6 digits'), ('012345', '6 digits'), ('', '6 digits'),
    ('¹²³³²¹', '6 digits'),
    (-1, '0 to 15624'), (15625, '0 to 15624'), (True, 'index'),
    (None, 'genotype'), (1.5, 'genotype'), ((1, 2, 3), '6 integers'),
    ((0, 0, 0, 0, 0, 5), '0 to 4'), ((0, 0, 0, 0, 0, .5), '0 to 4'),
    ('|none~0|', '3 groups'),
    ('|none~0|+|none~0|none~1|+|none~0|none~1|', 'node 3'),
    ('|none~0|+|none~0|none~0|+|none~0|none~1|none~2|', 'node 2'),
    ('|none~0|+|none~0|none~2|+|none~0|none~1|none~2|', '0 to 1'),
    ('|none~0|+|none|none~1|+|none~0|none~1|none~2|', 'operation~pred'),
    ('|none~0|+|none~0|conv~1|+|none~0|none~1|none~2|', "'conv'"),
    ('|none~0|+|none~0|nor_conv3x3~1|+|none~0|none~1|none~2|',
     'did you mean'),
    (GENOTYPE._replace(normal=GENOTYPE.normal[:2]), '3 nodes'),
    (GENOTYPE._replace(normal_concat=(2, 3)), 'normal_concat'),
    (GENOTYPE._replace(reduce=GENOTYPE.normal), 'reduce'),
    (GENOTYPE._replace(normal=GENOTYPE.normal[:2] + ((('none', 0),),)),
     'node 3'),
])
def test_what_is_no_cell_is_refused(cell, words):
  with pytest.raises(errors.UserError, match=re.escape(words)):
    forms.parse(cell)


def test_isomorphic_cells():
  """6,466 structures (Dong and Yang, ICLR 2020), and why."""
  unique = [forms.to_unique_string(i) for i in range(forms.NUM_CELLS)]
  assert len(set(unique)) == 6466
  canonical = [forms.to_canonical(i) for i in range(forms.NUM_CELLS)]
  assert len(set(canonical)) == 6466
  for index in range(0, forms.NUM_CELLS, 97):
    assert unique[canonical[index]] == unique[index]
    assert canonical[index] <= index
  assert forms.to_unique_string('421211') == (
      '(0)@avg_pool_3x3+(0)@avg_pool_3x3+(0)@nor_conv_1x1+(0)@nor_conv_1x1')
  # Node 1 holds nothing: what reads it does not matter.
  assert len({forms.to_canonical(f'03{a}3{b}3')
              for a, b in itertools.product('01234', repeat=2)}) == 1
  # Node 1 is the input: reading the one or the other is the same.
  assert forms.to_canonical('123234') == forms.to_canonical('132324')
  # What the rule leaves apart: nodes 1 and 2 have changed places here.
  assert forms.to_canonical('230034') != forms.to_canonical('320043')


# --- NAS-Bench-201

# Best mean test accuracies after 200 epochs, known as 94.37, 73.51 and 47.31.
OPTIMA = {
    'cifar10': (6111, 94.37333, '|nor_conv_3x3~0|'
                '+|nor_conv_3x3~0|nor_conv_3x3~1|'
                '+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|'),
    'cifar100': (9930, 73.51333, '|nor_conv_3x3~0|'
                 '+|nor_conv_3x3~0|nor_conv_3x3~1|'
                 '+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|'),
    'imagenet16-120': (857, 47.31111, KNOWN[857]),
}


@pytest.mark.parametrize('dataset', DATASETS)
def test_the_optima(nb201, dataset):
  index, value, string = OPTIMA[dataset]
  best = nb201.best(dataset)
  assert (best.row, best.cell) == (index, string)
  assert best.value == pytest.approx(value, abs=5e-6)
  assert nb201.rank(index, dataset) == 1
  assert nb201.regret(index, dataset) == 0


# Best mean accuracies and their cells as HPOBench lists them in
# hpobench/benchmarks/nas/nasbench_201.py, from NAS-Bench-201's own file.
@pytest.mark.parametrize('cell, dataset, split, run, value', [
    (6111, 'cifar10', 'valid', None, 91.60666665),
    (9930, 'cifar100', 'valid', None, 73.49333336),
    (10676, 'imagenet16-120', 'valid', None, 46.73333327),
    (9930, 'cifar100', 'test', None, 73.51333332),
    (857, 'imagenet16-120', 'test', None, 47.31111101),
    (0, 'cifar10', 'valid', 0, 82.092),
    (0, 'imagenet16-120', 'valid', 2, 28.9333333),
])
def test_values_that_others_published(nb201, cell, dataset, split, run, value):
  assert nb201.query(cell, dataset, split, run=run) == pytest.approx(
      value, abs=5e-6)


# The same list's best single runs.
@pytest.mark.parametrize('dataset, cell, value', [
    ('cifar10', 6111, 91.72), ('cifar100', 13714, 73.72),
    ('imagenet16-120', 13778, 47.40)])
def test_the_best_single_runs(nb201, dataset, cell, value):
  runs = np.stack([nb201.values(dataset, 'valid', run=r) for r in range(3)])
  assert np.nanmax(runs) == pytest.approx(value, abs=5e-6)
  assert np.nanargmax(np.nanmax(runs, 0)) == cell


def test_every_cell_is_measured(nb201):
  for dataset in DATASETS:
    for split, epochs in itertools.product(('test', 'valid'), (12, 200)):
      values = nb201.values(dataset, split, epochs)
      assert values.shape == (15625,) and values.dtype == np.float64
      assert 0 < values.min() and values.max() < 100
    for run in range(2):
      assert not np.isnan(nb201.values(dataset, 'valid', run=run)).any()
    # The third run is there for about half of the cells.
    third = nb201.values(dataset, 'valid', run=2)
    assert np.isnan(third).sum() == 7456


@pytest.mark.parametrize('dataset, split, epochs, images', [
    ('cifar10', 'test', 12, 10_000), ('cifar100', 'test', 12, 5_000),
    ('imagenet16-120', 'test', 12, 3_000),
    ('cifar100', 'valid', 12, 5_000), ('imagenet16-120', 'valid', 12, 3_000)])
def test_single_runs_are_counts_of_images(nb201, dataset, split, epochs,
                                          images):
  counts = nb201.values(dataset, split, epochs) * images / 100
  assert np.abs(counts - np.round(counts)).max() < 1e-9


def test_runs_are_averaged_where_there_are_three_or_two(nb201):
  runs = np.stack([nb201.values('cifar10', 'valid', run=r) for r in range(3)])
  expected = np.nanmean(runs, 0)
  assert np.allclose(nb201.values('cifar10', 'valid'), expected, atol=1e-12)
  two = int(np.flatnonzero(np.isnan(runs[2]))[0])
  assert nb201.query(two, 'cifar10', 'valid') == pytest.approx(
      runs[:2, two].mean())
  with pytest.raises(errors.UserError, match='no valid accuracy'):
    nb201.query(two, 'cifar10', 'valid', run=2)


def test_parameters_are_those_of_the_skeleton(nb201):
  """73,306 without convolutions; 243,040 and 28,000 per 3x3 and 1x1 edge.

  15 cells of 16, 32 and 64 channels, five each: 9 * 5 * (256 + 1024 + 4096)
  weights and 2 * 5 * (16 + 32 + 64) of BatchNorm for a 3x3 edge.
  """
  per_edge = 5 * (256 + 1024 + 4096), 2 * 5 * (16 + 32 + 64)
  cells = [forms.from_index(i) for i in range(forms.NUM_CELLS)]
  ones = np.array([cell.count(2) for cell in cells])
  threes = np.array([cell.count(3) for cell in cells])
  expected = (73_306 + ones * (per_edge[0] + per_edge[1])
              + threes * (9 * per_edge[0] + per_edge[1]))
  for dataset, classes in zip(DATASETS, (10, 100, 120)):
    head = (classes - 10) * 65
    assert np.array_equal(
        nb201.cost_values('params', dataset), expected + head)


def test_training_times_are_in_proportion_to_the_images(nb201):
  times = [nb201.cost_values('train_time', name) for name in DATASETS]
  assert nb201.cost(0, 'train_time') == pytest.approx(1444.2186, abs=1e-3)
  assert np.allclose(times[1], 2 * times[0])
  assert np.allclose(times[2], 151_700 / 25_000 * times[0])
  assert 0 < nb201.cost(0, 'latency', 'cifar100') < 0.1


# (cell, data set): millions of FLOPs that NATS-Bench's files have. The least
# and the largest are in many projects' code (such as EvoXBench's and
# MO-HPOBench's ranges); cell 0 is in D-X-Y/NATS-Bench issue 24, the last in
# issue 36.
FLOPS = {
    ('000000', 'cifar10'): 7.78305, ('333333', 'cifar10'): 220.11969,
    ('000000', 'cifar100'): 7.7889, ('333333', 'cifar100'): 220.12554,
    ('000000', 'imagenet16-120'): 1.9534,
    ('333333', 'imagenet16-120'): 55.03756,
    (0, 'cifar10'): 15.64737, (0, 'cifar100'): 15.65322,
    (0, 'imagenet16-120'): 3.91948,
    ('|skip_connect~0|+|none~0|nor_conv_3x3~1|+|avg_pool_3x3~0|'
     'nor_conv_3x3~1|nor_conv_3x3~2|', 'cifar10'): 113.95137,
}


def test_flops_are_the_published_ones(nb201):
  for (cell, dataset), millions in FLOPS.items():
    assert nb201.cost(cell, 'flops', dataset) == round(millions * 1e6)


def test_multiply_adds_are_those_of_the_network(nb201):
  """The whole column, from the closed form of one edge of each stage.

  Five cells a stage, 16 x 32^2, 32 x 16^2 and 64 x 8^2: each stage has
  5 * 16^2 * 32^2 multiply-adds for a 1x1 edge.
  """
  one = 3 * 5 * 16**2 * 32**2
  cells = [forms.from_index(i) for i in range(forms.NUM_CELLS)]
  weight = np.array([cell.count(2) + 9 * cell.count(3) for cell in cells])
  for dataset, shrink, classes in (
      ('cifar10', 1, 10), ('cifar100', 1, 100), ('imagenet16-120', 4, 120)):
    bare = 1e6 * FLOPS['000000', dataset] - classes
    macs = nb201.cost_values('macs', dataset)
    assert np.array_equal(macs, np.round(bare) + weight * one // shrink)
    assert np.array_equal(nb201.cost_values('flops', dataset), macs + classes)
  assert np.array_equal(forms.all_ops(), cells)


@pytest.mark.parametrize('cell', [0, '333333', '421211', '100000'])
@pytest.mark.parametrize('dataset', DATASETS)
def test_report_has_the_multiply_adds(nb201, cell, dataset):
  rows = nasbench201.report(cell)['datasets']
  assert rows[dataset]['macs'] == nb201.cost(cell, 'macs', dataset)


# --- NASLib's numbers


def naslib_string(op_indices):
  """`convert_op_indices_to_str` of automl/NASLib, transcribed."""
  names = ['skip_connect', 'none', 'nor_conv_3x3', 'nor_conv_1x1',
           'avg_pool_3x3']
  edges = ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))
  op_of = {edge: names[op] for edge, op in zip(edges, op_indices)}
  parts = [f'{op_of[i, j]}~{i - 1}'
           for i, j in sorted(op_of, key=lambda edge: edge[1])]
  return '|{}|+|{}|{}|+|{}|{}|{}|'.format(*parts)


def test_numbers_of_naslib():
  drawn = np.random.default_rng(0).integers(5, size=(200, 6))
  for numbers in [(0, 1, 2, 3, 4, 0), *map(tuple, drawn.tolist())]:
    ops = forms.from_naslib(numbers)
    assert forms.to_string(ops) == naslib_string(numbers)
    assert forms.to_naslib(ops) == numbers
  assert forms.from_naslib(drawn[0]) == forms.from_naslib(tuple(drawn[0]))
  # Neither the operations nor the edges have our order.
  assert forms.from_naslib((2, 2, 2, 2, 2, 2)) == (3, 3, 3, 3, 3, 3)
  assert forms.from_naslib((1, 1, 0, 1, 1, 1)) == (0, 0, 0, 1, 0, 0)


@pytest.mark.parametrize('value', [
    (1, 2, 3), (0, 0, 0, 0, 0, 5), (0, 0, 0, 0, 0, True), '000000', 5, None,
    (0, 0, 0, 0, 0, 1.5)])
def test_what_is_not_naslibs_is_refused(value):
  with pytest.raises(errors.UserError, match='that NASLib calls op_indices'):
    forms.from_naslib(value)


# --- Cells as they stand in texts

CELL = '|none~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|'
CELL_OPS = (0, 2, 1, 0, 0, 4)


@pytest.mark.parametrize('text', [
    CELL, f'  {CELL}\n', CELL.replace('~', ' ~ '), CELL.replace('|', ' | '),
    CELL.replace('+', ' +\n '), '021004', ' 021004 ', '(0, 2, 1, 0, 0, 4)',
    '[0,2,1,0,0,4]', '(np.int64(0), 2, 1, 0, 0, np.int64(4))',
])
def test_cells_as_texts(text, nb201):
  assert forms.parse(text) == CELL_OPS
  assert forms.from_genotype(forms.read(text).genotype) == CELL_OPS
  assert nb201.query(text) == nb201.query(CELL_OPS)


@pytest.mark.parametrize('text', [
    f'[2020-01-01] genotype: Structure(4 nodes with {CELL}) top1 | 91.2 |',
    f"arch = '{CELL}'", f'{CELL} |', f'| 3 | {CELL}'])
def test_cells_in_lines_of_logs(text, tmp_path):
  assert forms.from_genotype(forms.read(text).genotype) == CELL_OPS
  path = tmp_path / 'log.txt'
  other = CELL.replace('avg_pool_3x3', 'none')
  path.write_text(f'epoch 0: {other}\n{text}\n', encoding='utf-16')
  record = forms.read(path)
  assert forms.from_genotype(record.genotype) == CELL_OPS
  assert record.info == {'space': 'nasbench201', 'source': 'the last of 2'}


@pytest.mark.parametrize('text, words', [
    ('(0, 2, 1, 0, 0, 5)', 'must be 6 integers of 0 to 4'),
    ('(0, 2, 1)', 'must be 6 integers of 0 to 4'),
    ('(0, 2, 1, 0, 0, open)', 'must be 6 integers of 0 to 4'),
    ('(0, 2, 1, 0, 0, 1.)', 'must be 6 integers of 0 to 4'),
    ('|none~0|', 'must have 3 groups'),
])
def test_cells_that_are_none(text, words):
  with pytest.raises(errors.UserError, match=re.escape(words)):
    forms.read(text)


def test_queries_by_all_forms_agree(nb201):
  for index in (0, 857, 15624):
    expected = nb201.values('cifar100')[index]
    for cell in (index, forms.to_code(index), forms.to_string(index),
                 forms.to_genotype(index)):
      assert nb201.query(cell, 'cifar100') == expected
  assert nb201.query(857, 'ImageNet16-120') == nb201.query(
      857, 'imagenet16-120')


def test_rank_and_regret_follow_the_values(nb201):
  values = nb201.values('cifar10')
  rows = np.random.default_rng(0).integers(15625, size=30)
  rows = rows[np.argsort(-values[rows])]
  ranks = [nb201.rank(int(row)) for row in rows]
  regrets = [nb201.regret(int(row)) for row in rows]
  assert ranks == sorted(ranks) and regrets == sorted(regrets)
  for row, rank, regret in zip(rows, ranks, regrets):
    assert rank == 1 + sum(v > values[row] for v in values)
    assert regret == pytest.approx(values.max() - values[row])
  # 6111 and 13714 have the same mean, and share the first place.
  assert nb201.rank(6111) == nb201.rank(13714) == 1
  assert nb201.rank(9930) == 3


@pytest.mark.parametrize('arguments, words', [
    (dict(dataset='cifar'), "dataset='cifar' must be one of cifar10, "),
    (dict(dataset='cifar11'), "did you mean 'cifar10'"),
    (dict(dataset=3), 'dataset=3 must'),
    (dict(split='train'), "split='train' must be one of test, valid"),
    (dict(epochs=90), 'epochs=90 must be one of 12, 200'),
    (dict(epochs='200'), "epochs='200' must"),
    (dict(split='valid', run=3), 'run=3 must be 0 to 2'),
    (dict(run=1), 'run=1 must be 0 to 0'),
    (dict(split='valid', run=True), 'run=True'),
])
def test_a_wrong_argument_is_named(nb201, arguments, words):
  for call in (nb201.query, nb201.rank, nb201.regret):
    with pytest.raises(errors.UserError, match=re.escape(words)):
      call(0, **arguments)
  with pytest.raises(errors.UserError, match=re.escape(words)):
    nb201.values(**arguments)


def test_a_wrong_cost_is_named(nb201):
  with pytest.raises(errors.UserError, match=(
      "name='FLOP' must be one of .*; did you mean 'flops'")):
    nb201.cost(0, 'FLOP')
  with pytest.raises(errors.UserError, match='dataset'):
    nb201.cost(0, 'params', 'svhn')


def test_report_is_json_and_agrees_with_the_lookups(nb201):
  report = nasbench201.report(forms.to_genotype(6111))
  assert json.loads(json.dumps(report, allow_nan=False)) == report
  assert report['index'] == 6111 and report['num_cells'] == 15625
  assert report['string'] == OPTIMA['cifar10'][2]
  assert forms.to_index(report['code']) == 6111
  assert report['params'] == 73_306 + 4 * 243_040 + 28_000
  assert tuple(report['datasets']) == DATASETS
  for dataset, figures in report['datasets'].items():
    assert figures['test'] == nb201.query(6111, dataset)
    assert figures['rank'] == nb201.rank(6111, dataset)
    assert figures['regret'] == pytest.approx(
        OPTIMA[dataset][1] - figures['test'], abs=1e-5)
    assert figures['test_12_epochs'] == nb201.query(6111, dataset, epochs=12)
  assert report['datasets']['cifar10']['rank'] == 1


# --- NAS-Bench-Macro


def test_macro_optimum_and_extremes():
  """Figures of nas-bench-macro_cifar10.json."""
  known = macro.load()
  best = known.best()
  assert best.cell == '22212202'
  assert best.value == pytest.approx((93.28 + 93.33 + 92.77) / 3, abs=1e-9)
  assert [known.query('22212202', run=r) for r in range(3)] == (
      pytest.approx([93.28, 93.33, 92.77], abs=1e-9))
  assert [known.query(0, run=r) for r in range(3)] == (
      pytest.approx([45.32, 45.33, 45.44], abs=1e-9))
  assert known.cost('02012100', 'params') == 890_666
  assert known.cost('02012100', 'flops') == 47_327_744
  assert known.cost('00000000', 'params') == 387_882
  assert known.regret(0) == pytest.approx(best.value - known.query(0))
  assert known.rank(0) == known.size == 6561


def test_macro_forms():
  codes = set()
  for index in range(macro.NUM_NETWORKS):
    code = macro.to_code(index)
    codes.add(code)
    assert macro.to_index(code) == index
    assert macro.parse(tuple(map(int, code))) == macro.parse(index)
  assert codes == set(map(''.join, itertools.product('012', repeat=8)))


@pytest.mark.parametrize(
    'cell', ['0123', '00000003', 6561, -1, None, True, (1, 2), 1.5])
def test_what_is_no_macro_network_is_refused(cell):
  with pytest.raises(errors.UserError, match='cell='):
    macro.parse(cell)


def test_macro_networks_that_are_the_same_have_the_same_figures():
  """3 * 3 in the first stage, 3 * (1 + 2 + 4) in each of the other two."""
  known = macro.load()
  values, params = known.values(), known.cost_values('params')
  canonical = np.array([macro.to_index(macro.to_canonical(i))
                        for i in range(macro.NUM_NETWORKS)])
  assert len(set(canonical)) == 9 * 21 * 21
  assert np.array_equal(values, values[canonical])
  assert np.array_equal(params, params[canonical])
  assert macro.to_canonical('20102102') == '20120120'


# --- The files


@pytest.mark.parametrize('module', [nasbench201, macro])
def test_the_files_are_small_and_say_where_they_are_from(module):
  path = table.DATA / module.FILE
  assert path.stat().st_size < 2_000_000
  known = module.load()
  assert {'title', 'origin', 'licence', 'papers', 'notes'} <= set(
      known.provenance)
  assert json.dumps(known.provenance)
  with np.load(path, allow_pickle=False) as file:
    assert all(file[name].dtype.kind in 'uf' for name in file.files)


def test_the_files_own_list_of_cells_is_the_computed_order():
  with np.load(table.DATA / nasbench201.FILE, allow_pickle=False) as file:
    stored = file['cell'][:, 0]
  assert stored.tolist() == [
      int(forms.to_code(i), 5) for i in range(forms.NUM_CELLS)]


def read(folder):
  return table.unpack(folder / nasbench201.FILE, forms.to_index,
                      forms.to_string)


@pytest.fixture
def copies(tmp_path):
  for name in (nasbench201.FILE, table.SUMS):
    shutil.copy(table.DATA / name, tmp_path)
  assert read(tmp_path).size == 15625
  return tmp_path


@pytest.mark.parametrize('place', [0, 1000, -1])
def test_one_changed_bit_is_found(copies, place):
  path = copies / nasbench201.FILE
  data = bytearray(path.read_bytes())
  data[place] ^= 1
  path.write_bytes(data)
  with pytest.raises(errors.UserError, match='is damaged: its SHA-256'):
    read(copies)


@pytest.mark.parametrize('damage', [
    lambda folder: (folder / nasbench201.FILE).unlink(),
    lambda folder: (folder / nasbench201.FILE).write_bytes(b''),
    lambda folder: (folder / table.SUMS).unlink(),
    lambda folder: (folder / table.SUMS).write_bytes(b'\xff\xfe'),
    lambda folder: (folder / table.SUMS).write_text('nonsense\n'),
])
def test_a_missing_or_empty_file_is_a_user_error(copies, damage):
  damage(copies)
  with pytest.raises(errors.UserError, match=nasbench201.FILE):
    read(copies)


def with_right_sum(folder, data):
  import hashlib
  (folder / nasbench201.FILE).write_bytes(data)
  (folder / table.SUMS).write_text(
      f'{hashlib.sha256(data).hexdigest()}  {nasbench201.FILE}\n')


@pytest.mark.parametrize('data', [
    b'no archive', table.pack({}, {}), table.pack({}, {'format': 2}),
    table.pack({}, {'accuracies': [{'dataset': 'cifar10'}], 'costs': []})])
def test_another_content_is_a_user_error(tmp_path, data):
  with_right_sum(tmp_path, data)
  with pytest.raises(errors.UserError, match='is not a table'):
    read(tmp_path)
