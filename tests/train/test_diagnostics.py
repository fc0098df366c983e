"""Diagnostics of collapse: what they measure, when, and what they say."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stopping import StopAfter

from rome_jax import config as config_lib
from rome_jax import data, errors, families, spaces
from rome_jax.engine import archs
from rome_jax.engine import weights as weights_lib
from rome_jax.methods import step, table
from rome_jax.methods.method import ArchParams
from rome_jax.spaces import collapse, genotypes
from rome_jax.spaces.genotypes import PARAMETERLESS
from rome_jax.train import diagnostics, loop, metrics, optim, search
from rome_jax.train.recipes import SearchRecipe
from rome_jax.train.setup import Setup

TIMES = ('time', 'seconds', 'images_per_second', 'step_ms', 'input_wait_ms')
SKIP, SEP, MAX, AVG, DIL = (
    'skip_connect', 'sep_conv_3x3', 'max_pool_3x3', 'avg_pool_3x3',
    'dil_conv_3x3')
TINY = spaces.Space('watched', (SKIP, SEP), num_nodes=1)


class Never:
  requested = False


# ---------------------------------------------------- entropy of each edge


@pytest.mark.parametrize('space', [spaces.S1, spaces.S3, spaces.NASBENCH201],
                         ids=lambda space: space.name)
def test_entropy_and_margin_of_each_edge(space):
  """Of the candidates of the edge alone; the means are those of before."""
  rng = np.random.default_rng(0)
  alpha = {t: np.float32(rng.normal(size=(space.num_sites, space.num_choices)))
           for t in space.cell_types}
  found = step.diagnostics(space, ArchParams(
      alpha, {t: np.zeros(0, np.float32) for t in space.cell_types}))
  for t in space.cell_types:
    entropies, margins, free = [], [], []
    for row, names in zip(alpha[t], space.site_ops(t)):
      p = np.exp(np.float64(row[:len(names)]))
      p = p / p.sum()
      free.append(sum(q for q, op in zip(p, names) if op in PARAMETERLESS))
      p = np.sort(p)
      entropies.append(-(p * np.log(p)).sum())
      margins.append(p[-1] - p[-2])
    for name, values in (('entropy', entropies), ('margin', margins)):
      for site, value in enumerate(values):
        assert float(found[f'alpha_{name}_{t}/{site:02d}']) == pytest.approx(
            value, rel=1e-4, abs=1e-6)
      assert float(found[f'alpha_{name}_{t}']) == pytest.approx(
          np.mean(values), rel=1e-4)
    assert float(found[f'parameterless_share_{t}']) == pytest.approx(
        np.mean(free), rel=1e-4)
  assert len(found) == len(space.cell_types) * (2 * (space.num_sites + 1) + 1)


# ------------------------------------------------------------------ collapse


def darts_cells(normal, reduce=None):
  """A genotype whose nodes read states 0 and 1, by the operations given."""

  def cell(ops):
    return tuple(((a, 0), (b, 1)) for a, b in zip(ops[::2], ops[1::2]))

  concat = tuple(range(2, 2 + len(normal) // 2))
  return genotypes.Genotype(
      cell(normal), concat, cell(reduce or normal), concat)


@pytest.mark.parametrize('free, collapsed', [(8, True), (6, True), (5, False)])
def test_three_quarters_without_weights(free, collapsed):
  genotype = darts_cells(free * [SKIP] + (8 - free) * [SEP], 8 * [SEP])
  found = collapse.cells(genotype, spaces.S2)
  assert found['normal'] == collapse.Cell(free, 8)
  assert found['normal'].collapsed is collapsed
  assert found['reduce'] == collapse.Cell(0, 8)


def test_only_places_that_offer_weights_count():
  """S1's reduction cell has edges of two poolings: e0, e2, e3, e5 and e9.

  Here nodes read states 0 and 1, by the edges e0 and e1, e2 and e3, e5 and e6,
  e9 and e10; weights are on offer on e1 and e6 alone.
  """
  ops = [MAX, DIL, AVG, MAX, MAX, SEP, AVG, MAX]
  found = collapse.cells(darts_cells(8 * [SKIP], ops), spaces.S1)
  assert found['reduce'] == collapse.Cell(0, 2)
  ops = [MAX, MAX, AVG, MAX, MAX, MAX, AVG, MAX]
  found = collapse.cells(darts_cells(8 * [SKIP], ops), spaces.S1)
  assert found['reduce'] == collapse.Cell(2, 2) and found['reduce'].collapsed
  # e5 and e10 of the normal cell offer a pooling and a skip: 6 count.
  assert found['normal'] == collapse.Cell(6, 6)


def test_a_published_collapse():
  """RobustDARTS' results_arch.yaml: S1, CIFAR-10, seven skips and a dil3."""
  ops = [SKIP, SKIP, SKIP, SKIP, SKIP, SKIP, DIL, SKIP]
  found = collapse.cells(darts_cells(ops, 8 * [MAX]), spaces.S1)
  assert found['normal'].collapsed


def test_noise_none_and_nodes_with_operations():
  found = collapse.cells(darts_cells(8 * ['noise']), spaces.S4)
  assert found['normal'] == collapse.Cell(8, 8)
  rng = np.random.default_rng(0)
  for name in ('nasbench201', 'nasbench1shot1_1', 'mobile_tiny'):
    space = spaces.SPACES[name]
    for _ in range(20):
      genotype = genotypes.random(space, rng)
      chosen = genotypes.operations(genotype, space)['normal']
      assert collapse.cells(genotype, space)['normal'] == (
          genotypes.parameterless(genotype, space)['normal'], len(chosen))


def test_a_sentence_once_per_cell_type(capsys):
  watch = diagnostics.Watch(spaces.S2, 'search', 20.)
  good, bad = darts_cells(8 * [SEP]), darts_cells(8 * [SKIP], 8 * [SEP])
  assert watch(good, 1.) == {'collapsed_normal': 0, 'collapsed_reduce': 0}
  assert capsys.readouterr().err == ''
  watch(bad, 2.)  # Too short.
  watch(good, 3.)
  assert watch(bad, 7.5) == {'collapsed_normal': 1, 'collapsed_reduce': 0}
  assert capsys.readouterr().err == ''
  watch(bad, 9.5)
  assert capsys.readouterr().err == (
      'search: warning: the normal cell has collapsed: 8 of its 8 operations '
      'that could have weights have none, since epoch 7.5\n')
  watch(good, 10.)
  watch(bad, 13.)
  watch(bad, 16.)
  assert capsys.readouterr().err == ''
  watch(darts_cells(8 * [SEP], 8 * [SKIP]), 20.)  # At the end.
  assert 'the reduction cell has collapsed' in capsys.readouterr().err


@pytest.mark.parametrize('logged', range(1, 7))
def test_a_watch_goes_on_from_the_lines_of_a_run(logged, capsys):
  """Wherever it is cut it says what one watch says, once in all."""
  good, bad = darts_cells(8 * [SEP]), darts_cells(8 * [SKIP], 8 * [SEP])
  course = [(good, 1.), (bad, 2.), (good, 3.), (bad, 7.5), (bad, 9.5),
            (bad, 12.), (bad, 20.)]

  def watched(watch, part):
    return [{'phase': 'search', 'epoch': epoch, **watch(genotype, epoch)}
            for genotype, epoch in part]

  before = watched(diagnostics.Watch(spaces.S2, 'search', 20.), course[:logged])
  said = capsys.readouterr().err
  rows = [{'phase': 'retrain/a', 'epoch': 1, 'train_loss': 1.},
          *({**row, 'phase': 'search/stage-1', 'collapsed_reduce': 1}
            for row in before),
          {'phase': 'search', 'epoch': .5, 'tau': 1.}, *before]
  watched(diagnostics.Watch(spaces.S2, 'search', 20., lambda: rows),
          course[logged:])
  assert bool(said) is (logged >= 5)
  assert said + capsys.readouterr().err == (
      'search: warning: the normal cell has collapsed: 8 of its 8 operations '
      'that could have weights have none, since epoch 7.5\n')


def test_the_figures_say_since_when():
  rows = [{'phase': phase, 'epoch': e, 'collapsed_normal': c} for phase, e, c in
          (('search', 1, 1), ('search', 2, 0), ('search', 3, 1),
           ('retrain/a', 4, 0), ('search', 5, 1))]
  bad = darts_cells(6 * [SKIP] + 2 * [SEP], 8 * [SEP])
  assert diagnostics.figures(rows, 'search', bad, spaces.S2) == {'collapse': {
      'normal': {'without_weights': 6, 'of': 8, 'epoch': 3}}}
  assert diagnostics.figures(
      rows, 'search', darts_cells(8 * [SEP]), spaces.S2) == {}


# --------------------------------------------------- the discretisation gap


@functools.cache
def dataset():
  return data.load('digits', '')


def setup_of(method, space=TINY):
  return Setup(space, families.get(space), table.METHODS[method],
               spaces.Sizes(3, 4, 10, 8, 1), 'cifar')


# 43 images to a half: 2 steps of 16 in an epoch.
RECIPE = SearchRecipe(
    cells=3, channels=4, epochs=3, batch_size=16, k=1, samples='scan', lr=.025,
    fraction_theta=.03, fraction_alpha=.03, augment='shift', alpha_lr=.1)


def with_alpha(table_of, beta=0):
  """A state with alpha alone, which is all that `derive` reads."""
  arch = ArchParams({t: np.float32(a) for t, a in table_of.items()},
                    {t: np.zeros(beta, np.float32) for t in table_of})
  return step.State(jnp.int32(2), jnp.uint32(0), None, arch, (), ())


@pytest.fixture(name='judge', scope='module')
def _judge(quick_jit):
  """What makes `Derived`s of one cell and knows its accuracy by hand."""
  recipe, setup = RECIPE._replace(cells=1), setup_of('darts')
  halves = search.make_halves(setup, recipe, dataset(), 0)
  net = search.make_supernet(setup, recipe)
  apply = quick_jit(net.apply)
  theta = weights_lib.init_supernet(net, 0, 8, 1)
  images = dataset().train
  plain = data.make_transform('shift', dataset(), train=False)
  programs = []

  def make(method, tau=None):
    made = diagnostics.Derived(
        setup_of(method), recipe, net, halves.valid, dataset(), tau, number=9)
    programs.append(made._score)
    made._score = programs[0]  # One network, one program.
    return made

  def by_hand(edges, ops, gates):
    cell = archs.CellArch(
        jnp.array(edges, jnp.int32), jnp.array(ops, jnp.int32),
        jnp.array(gates, jnp.float32))
    right = []
    for number in range(2):  # The half has two whole batches.
      chosen = halves.valid.batch_indices(number)
      logits = apply(
          {'params': theta}, plain(images.get(chosen), None),
          {'normal': cell, 'reduce': cell})
      right.append(np.asarray(logits).argmax(-1) == images.labels[chosen])
    return pytest.approx(np.mean(right))

  def state(alpha):
    return with_alpha({t: alpha for t in spaces.CELL_TYPES})._replace(
        theta=theta)

  return types.SimpleNamespace(make=make, by_hand=by_hand, state=state)


MIXED = [0, 0, 1, 1], [0, 1, 0, 1]  # edges and operations of TINY's mixture


def test_supernet_and_derived_network_on_the_same_images(judge):
  """Against the network itself on images read by hand.

  FairDARTS leaves edges out, whose slots then have gate 0.
  """
  measure = judge.make('fair_darts', lambda step: 1.)
  numbers = []
  for alpha in ([[9., 0.], [9., 0.]], [[0., 9.], [9., 0.]],
                [[9., 0.], [0., 0.]]):
    state = judge.state(alpha)
    node, = table.METHODS['fair_darts'].derive(TINY, state.arch).normal
    edges = [pred for _, pred in node]
    numbers.append(len(edges))
    derived = judge.by_hand(
        edges, [TINY.ops.index(op) for op, _ in node], [1.] * len(edges))
    supernet = judge.by_hand(*MIXED, 1 / (1 + np.exp(-np.ravel(alpha))))
    found = measure(state)
    assert found['derived_accuracy'] == derived
    assert found['supernet_accuracy'] == supernet
    assert found['discretisation_gap'] == (
        found['supernet_accuracy'] - found['derived_accuracy'])
    assert set(found) == {
        'supernet_accuracy', 'derived_accuracy', 'discretisation_gap'}
  assert numbers == [2, 2, 1]
  # A program each for derived networks and for the mixture.
  assert measure._score._cache_size() == 2


def test_a_sampled_supernet_has_the_present_alpha_and_tau(judge):
  """SNAS' gates are all alike at a high tau; a strong alpha makes them 0, 1.

  The state has done two steps; tau is that of the second.
  """
  flat = [[.01, 0.], [0., .01]]
  hot = judge.make('snas', {1: 1e6}.__getitem__)(judge.state(flat))
  assert hot['supernet_accuracy'] == judge.by_hand(*MIXED, [.5] * 4)
  measure = judge.make('snas', lambda step: .1)
  cold = measure(judge.state([[99., 0.], [0., 99.]]))
  assert cold['supernet_accuracy'] == judge.by_hand(*MIXED, [1., 0., 0., 1.])
  assert cold['discretisation_gap'] == 0
  # Noise decides at a flat alpha; it is the same in every call.
  assert measure(judge.state(flat)) == measure(judge.state(flat))


def test_one_path_needs_one_program(judge):
  measure = judge.make('rome_v2', lambda step: .1)
  before = measure._score._cache_size()
  arch = ArchParams(
      {t: np.float32([[99., 0.], [0., 99.]]) for t in spaces.CELL_TYPES},
      {t: np.zeros(2, np.float32) for t in spaces.CELL_TYPES})
  found = measure(judge.state([[0., 0.]])._replace(arch=arch))
  assert found['supernet_accuracy'] == judge.by_hand([0, 1], [0, 1], [1., 1.])
  assert found['discretisation_gap'] == 0
  assert measure._score._cache_size() == max(before, 1)


def test_when_it_is_measured():
  of = diagnostics.gap_batches
  assert of(SearchRecipe(gap_batches=3), 10) == 3
  assert of(SearchRecipe(gap_batches=0), 10**5) == 0
  small = SearchRecipe(batch_size=100)
  assert of(small, 4_999) == 0 and of(small, 5_000) == 16
  # The digits, 50 epochs.
  assert of(SearchRecipe(), 50 * (1_437 // 2 // 64)) == 0


@pytest.mark.parametrize('method', [
    name for name, row in table.METHODS.items() if row.derive is not None])
def test_every_row_has_it_at_the_size_of_its_paper(method):
  """By its own recipe on the 50,000 images of CIFAR-10."""
  config = config_lib.defaults()
  config.method = method
  config_lib.apply_recipe(config)
  recipe = SearchRecipe(**config.search.to_dict())
  images = int(50_000 * recipe.fraction_theta)
  steps = recipe.epochs * (images // recipe.batch_size)
  assert method != 'pc_darts' or steps == 4_850
  assert diagnostics.gap_batches(recipe, steps) == 16


@pytest.mark.parametrize('method, why', [
    ('rome_v2', 'which samples architectures'),
    ('snas', 'which samples architectures'),
    ('spos', 'which learns no alpha'),
    ('random_search', 'which learns no alpha'),
    ('darts_es', 'which measures and logs the eigenvalue itself'),
    ('darts_ada', 'which measures and logs the eigenvalue itself')])
def test_whose_eigenvalue_is_not_to_be_logged(method, why):
  config = config_lib.defaults()
  config.method = method
  config_lib.apply_recipe(config)
  config.search.eigenvalue_every = 2
  with pytest.raises(errors.UserError, match=(
      r'^config\.search\.eigenvalue_every=2 must be 0 with config\.method='
      f"'{method}', {why}$")):
    config_lib.validate(config)


def test_the_eigenvalue_of_a_mixture_may_be_logged():
  config = config_lib.defaults()
  config.method, config.search.k, config.search.eigenvalue_every = 'darts', 1, 2
  config_lib.validate(config)


def test_the_eigenvalue_has_the_l2_of_the_recipe():
  """A loss that is a parabola of alpha: its curvature and the decay."""
  setup = setup_of('darts')
  arch = ArchParams({t: jnp.zeros((2, 2)) for t in spaces.CELL_TYPES},
                    {t: jnp.zeros(0) for t in spaces.CELL_TYPES})

  def loss(theta, cells, batch, key):
    alpha = cells['normal'].gates
    return batch * (alpha ** 2).sum() / 2, {'accuracy': batch}

  row = setup.method._replace(
      sample=lambda space, arch, noise, tau, mask=None: {
          t: archs.CellArch(jnp.zeros(4, int), jnp.zeros(4, int),
                            arch.alpha[t].ravel())
          for t in spaces.CELL_TYPES})
  recipe = RECIPE._replace(alpha_weight_decay=.25)
  options = search._options(recipe, 'scan', 6, 2)
  txs = optim.sgd(lambda step: .1, recipe), optim.arch_adam(recipe)
  measure = diagnostics.make_eigenvalue(
      (row, TINY, loss, *txs, lambda step: 1., options))
  state = step.init_state(row, TINY, jnp.zeros(1), arch, *txs)
  batch = jnp.float32(3.)
  assert float(measure(state, {'train': batch, 'valid': batch}).value) == (
      pytest.approx(3.25, rel=1e-4))


# ----------------------------------------------------------- whole searches


def run(method, recipe, workdir, stop=None):
  settings = loop.Settings(workdir, 3, 4, 2)
  with metrics.MetricsWriter(workdir, tensorboard=False) as writer:
    return search.run(setup_of(method), recipe, dataset(), 0, settings, writer,
                      stop or Never())


def lines(workdir):
  return [{k: v for k, v in row.items() if k not in TIMES}
          for row in metrics.read(workdir)]


@pytest.fixture(name='toy')
def _toy(monkeypatch):
  """A loss that is the mean label of the batch; alpha moves to the skips.

  So a search compiles in no time and its means are known.
  """

  def make_loss(*unused):
    def loss(theta, cells, batch, key):
      skips = sum((cell.gates * (cell.ops == 0)).sum()
                  for cell in cells.values())
      pull = skips - jax.lax.stop_gradient(skips)
      mean = batch['label'].astype(jnp.float32).mean()
      return mean - pull, {'accuracy': mean / 10}
    return loss

  monkeypatch.setattr(search, 'make_loss', make_loss)


def test_no_mean_spans_steps_without_alpha(toy, tmp_path):
  """Alpha moves from step 3 on; lines are due every 4 steps."""
  del toy
  recipe = RECIPE._replace(epochs=4, alpha_start=1)
  settings = loop.Settings(tmp_path, 4, 8, 2)
  with metrics.MetricsWriter(tmp_path, tensorboard=False) as writer:
    search.run(setup_of('darts'), recipe, dataset(), 0, settings, writer,
               Never())
  halves = search.make_halves(setup_of('darts'), recipe, dataset(), 0)
  means = [halves.valid(i)['label'].mean() for i in range(8)]
  rows = {row['step']: row for row in metrics.read(tmp_path)}
  assert set(rows) == {2, 4, 8} and 'valid_loss' not in rows[2]
  for last, first in ((4, 2), (8, 4)):
    assert rows[last]['valid_loss'] == pytest.approx(
        np.mean(means[first:last]), rel=1e-5)
    assert rows[last]['valid_accuracy'] == pytest.approx(
        np.mean(means[first:last]) / 10, rel=1e-5)


def test_a_resumed_search_says_what_one_start_says(toy, tmp_path, capsys):
  """Collapsed by step 3, it says so at step 6; it is cut after 4 and 8.

  A tenth of its 12 epochs is 2.4 steps; lines are due every 3 steps.
  """
  del toy

  def said():
    return [line for line in capsys.readouterr().err.splitlines()
            if 'collapsed' in line]

  recipe = RECIPE._replace(epochs=12, alpha_lr=1.)
  assert run('darts', recipe, tmp_path / 'whole')[0].finished
  whole = said()
  assert len(whole) == 2 and all('since epoch 1.5' in line for line in whole)
  for _ in range(2):
    assert not run('darts', recipe, tmp_path / 'cut', StopAfter(4))[0].finished
  assert run('darts', recipe, tmp_path / 'cut')[0].finished
  assert said() == whole
  assert lines(tmp_path / 'cut') == lines(tmp_path / 'whole')


@pytest.mark.slow
def test_a_search_with_all_of_them(tmp_path):
  """At each epoch's end and the last step; the same when it is resumed."""
  recipe = RECIPE._replace(gap_batches=2, eigenvalue_every=2, max_steps=5)
  outcome, _ = run('darts', recipe, tmp_path / 'whole')
  assert outcome.finished
  rows = {row['step']: row for row in lines(tmp_path / 'whole')}
  assert set(rows) == {2, 3, 4, 5}  # Every 3 steps besides.
  assert {s for s, row in rows.items() if 'derived_accuracy' in row} == {
      2, 4, 5}
  assert {s for s, row in rows.items() if 'dominant_eigenvalue' in row} == {
      4, 5}
  for row in rows.values():
    if 'derived_accuracy' in row:
      assert row['discretisation_gap'] == pytest.approx(
          row['supernet_accuracy'] - row['derived_accuracy'])
    if 'dominant_eigenvalue' in row:
      assert np.isfinite(row['dominant_eigenvalue'])
      assert row['eigenvalue_bound'] >= 0
    assert {f'alpha_margin_reduce/{i:02d}' for i in range(2)} <= set(row)
  for count in (2, 1):
    assert not run('darts', recipe, tmp_path / 'cut',
                   StopAfter(count))[0].finished
  again, _ = run('darts', recipe, tmp_path / 'cut')
  assert lines(tmp_path / 'cut') == lines(tmp_path / 'whole')
  jax.tree.map(np.testing.assert_array_equal, again.state, outcome.state)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['darts_es', 'darts_ada'])
def test_a_robust_search(method, tmp_path, monkeypatch):
  """With a rule that fires at once, from the first step to the genotype."""
  from rome_jax.methods.rows import darts, robust
  always = robust.Rule(every=1, factor=0., start=0)
  wrap = robust.early_stop if method == 'darts_es' else robust.raise_decay
  monkeypatch.setitem(
      table.METHODS, method, wrap(darts.darts, always))
  recipe = RECIPE._replace(epochs=9)
  outcome, genotype = run(method, recipe, tmp_path)
  rows = lines(tmp_path)
  measured = [row['step'] for row in rows if 'dominant_eigenvalue' in row]
  assert outcome.finished
  assert genotypes.load(str(tmp_path / 'genotype.json')) == genotype
  if method == 'darts_es':
    assert outcome.figures['steps'] == rows[-1]['step'] == 14
    assert measured == list(range(2, 15, 2))
    assert int(outcome.state.step) == 14 and bool(outcome.state.extra.stop)
  else:
    assert outcome.figures['steps'] == rows[-1]['step'] == 2 * (9 + 2 * 6)
    decays = [row['weight_decay'] for row in rows if 'weight_decay' in row]
    np.testing.assert_allclose(sorted(set(decays)), [3e-4, 3e-3, 3e-2],
                               rtol=1e-5)
    assert int(outcome.state.step) == 18
