"""Today's code against what version 0.1.0 computed, in recorded/.

`states.json` was written by version 0.1.0 on a CPU and holds no hashes: other
processors round differently. `workdir_0_1_0` is a search that version 0.1.0
stopped after 5 of 8 steps. `data.npz` holds the 48 images that all of them
read.
"""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from rome_jax import config as config_lib
from rome_jax import errors, spaces
from rome_jax.cli import run as run_lib
from rome_jax.data import augment
from rome_jax.spaces import genotypes
from rome_jax.train import metrics, retrain, search

FOLDER = pathlib.Path(__file__).with_name('recorded')
STATES = json.loads((FOLDER / 'states.json').read_text())
STEPS = 3
# Rounding grows in three steps to less than these on other processors.
RTOL = 1e-3  # of a sum, relative to the sum of |x|; of a metric
ATOL = 1e-4  # of alpha and beta: Adam divides, and one step is .01

COMMON = {
    'seed': 11, 'dataset': 'npz', 'data_dir': str(FOLDER / 'data.npz'),
    'test_fraction': .25, 'split_seed': 11, 'stem': 'cifar',
    'compilation_cache': '',
    'search.channels': 4, 'search.epochs': 3, 'search.max_steps': 5,
    'search.batch_size': 4, 'search.samples': 'scan',
    # Two steps an epoch: the rate and tau change within the three steps.
    'search.fraction_theta': .25, 'search.fraction_alpha': .5,
    'search.alpha_lr': .01, 'search.cutout': 4,
    'retrain.channels': 4, 'retrain.epochs': 2, 'retrain.batch_size': 16,
    'retrain.auxiliary': False, 'retrain.cutout': 4,
    'retrain.label_smoothing': .1}

VARIANTS = {
    'variant/options': ('rome_v2', 's2', {
        'search.sampler': 'strict_fair', 'search.order': 'theta_first',
        'search.accumulate': 2, 'search.theta_reduce': 'mean',
        'search.alpha_reduce': 'sum', 'search.tau_per': 'step',
        'search.tau_schedule': 'exponential', 'search.lr_per': 'step',
        'search.nesterov': True, 'search.samples': 'vmap',
        'search.augment': 'shift'}),
    'variant/bfloat16': ('rome_v1', 's2', {'search.dtype': 'bfloat16'}),
    'variant/imagenet': ('rome_v2', 's2', {
        'stem': 'imagenet', 'image_size': 64, 'search.augment': 'imagenet'}),
    'variant/strict_fair': ('rome_v2', 's1', {
        'search.sampler': 'strict_fair'}),
    'variant/two_edges': ('rome_v2', 'nasbench201', {
        'in_degree': 2, 'drop_none': True, 'search.augment': 'svhn'})}

REFUSED = {
    'gdas_k': ('gdas', 's2', {'search.k': 2}),
    'gdas_two_edges': ('gdas', 'nasbench201', {
        'in_degree': 2, 'drop_none': True}),
    'nasbench201_cells': ('rome_v2', 'nasbench201', {'search.cells': 4}),
    'mobile_cells': ('rome_v2', 'mobile_tiny', {'search.cells': 4}),
    'shot_cells': ('rome_v2', 'nasbench1shot1_1', {'search.cells': 4}),
    'shot_stem': ('rome_v2', 'nasbench1shot1_1', {'stem': 'imagenet'}),
    'tau': ('rome_v2', 's2', {'search.tau_end': 0.}),
    'method': ('rome_v3', 's2', {}),
    'unknown_space': ('rome_v2', 's2', {'space': 's22'}),
    'strict_fair_k': ('rome_v2', 's3', {'search.sampler': 'strict_fair'}),
    's2_drop_none': ('rome_v2', 's2', {'drop_none': True}),
    'shot_in_degree': ('rome_v2', 'nasbench1shot1_1', {'in_degree': 2}),
    'batch': ('rome_v2', 's2', {'search.batch_size': 50})}

# Said in other words today; their fields, values and reasons are the same.
REWORDED = {
    'batch': r'config\.search\.batch_size=50 must be at most 8: the share '
             r'config\.search\.fraction_theta=0\.25 of the 35 training '
             r'images$',
    'gdas_k': r'config\.search\.k=2 must be 1 with method=.gdas., which '
              r'samples one architecture a step$',
    'gdas_two_edges': r'config\.method=.gdas. needs every edge, but '
                      r'space=nasbench201 keeps \(1, 2, 2\) of a node',
    'method': r'config\.method=.rome_v3. must be one of rome_v1, rome_v2, '
              r'gdas, .*; did you mean .rome_v2.\?$',
    'unknown_space': r'space=.s22. must be one of s0, .*, nasbench_macro; '
                     r'did you mean .s2.\?$'}

RETRAINED = {  # one of each family, and S4, which draws noise
    's0': {'retrain.auxiliary': True, 'retrain.remat': 'cells'},
    'nasbench201': {'retrain.accumulate': 2, 'retrain.nesterov': True},
    'nasbench1shot1_1': {'retrain.lr_schedule': 'linear',
                         'retrain.warmup_epochs': 1},
    's4': {},
    'mobile_tiny': {'retrain.eval_batch_size': 5}}

RUN = {
    'seed': 3, 'method': 'rome_v2', 'space': 's2', 'dataset': 'npz',
    'data_dir': str(FOLDER / 'data.npz'), 'test_fraction': .25,
    'split_seed': 3, 'stem': 'cifar', 'compilation_cache': '', 'log_every': 3,
    'checkpoint_every': 4, 'keep_checkpoints': 1,
    'search.cells': 3, 'search.channels': 2, 'search.k': 2,
    'search.batch_size': 4, 'search.epochs': 4, 'search.samples': 'scan',
    'search.alpha_lr': .01, 'search.fraction_theta': .25,
    'retrain.cells': 3, 'retrain.channels': 2, 'retrain.epochs': 2,
    'retrain.batch_size': 8, 'retrain.auxiliary': False,
    'retrain.cutout': 4, 'retrain.drop_path': .2}

QUICK = ('s2/rome_v2', 'nasbench201/rome_v1', 'nasbench1shot1_1/gdas',
         'mobile_tiny/rome_v2')


def make_config(fields):
  """A validated config of {'search.k': 2, ...}."""
  config = config_lib.defaults()
  for name, value in fields.items():
    section, _, last = name.rpartition('.')
    setattr(config[section] if section else config, last, value)
  config_lib.validate(config)
  return config


def config_of(method, space, more=()):
  """The recorded config of a method in a space."""
  row = spaces.SPACES[space]
  cells = row.num_nodes if row.family == 'mobile' else 3
  return make_config(COMMON | {
      'method': method, 'space': space,
      'search.cells': cells, 'retrain.cells': cells,
      'search.k': 1 if method == 'gdas' else 2} | dict(more))


def random_genotypes(space, n):
  rng = np.random.default_rng(7)
  return [genotypes.random(spaces.SPACES[space], rng) for _ in range(n)]


@pytest.fixture(autouse=True)
def first_form(monkeypatch):
  """Version 0.1.0 had the first form of NAS-Bench-1Shot1's output."""
  for name, space in spaces.SPACES.items():
    if space.family == 'nasbench1shot1':
      monkeypatch.setitem(
          spaces.SPACES, name, space.restrict(layout=('concatenated',)))


@pytest.fixture(autouse=True)
def first_crop(monkeypatch):
  """Version 0.1.0 padded by 4 pixels whatever the size of the images."""
  monkeypatch.setattr(augment, 'crop_padding', lambda size: 4)


# ------------------------------------------------------------- comparisons


def weights(n):
  """Fixed pseudo-random numbers in [-1/2, 1/2): a permutation changes sums."""
  i = np.arange(1, n + 1, dtype=np.uint64)
  i = (i * np.uint64(2654435761)) % np.uint64(2**32)
  i = ((i ^ (i >> np.uint64(15))) * np.uint64(2246822519)) % np.uint64(2**32)
  return (i ^ (i >> np.uint64(13))).astype(np.float64) / 2**32 - .5


def flat(tree):
  """The numbers of a tree's floating leaves, in tree order."""
  leaves = [np.asarray(a) for a in jax.tree.leaves(jax.device_get(tree))]
  return np.concatenate([np.zeros(0), *(
      a.astype(np.float64).ravel() for a in leaves
      if a.dtype.kind == 'f')])


def check_sums(found, recorded, what):
  """Compares the sum, the sum of |x| and a weighted sum of a vector."""
  sums = [found.sum(), np.abs(found).sum(), (found * weights(found.size)).sum()]
  np.testing.assert_allclose(
      sums, recorded, rtol=0, atol=RTOL * abs(recorded[1]), err_msg=what)


def check_numbers(found, recorded):
  """Compares {name: number or numbers}, all names that were recorded."""
  for name, values in recorded.items():
    values = np.asarray(values)
    np.testing.assert_allclose(
        found[name], values, rtol=RTOL, atol=RTOL * 1e-2, err_msg=name)


# ---------------------------------------------------------------- searches


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in STATES['searches']])
def test_three_steps_of_a_search(name, quick_jit):
  recorded = STATES['searches'][name]
  space, _, method = name.partition('/')
  config = config_of(*VARIANTS.get(name, (method, space)))
  run = run_lib.prepare(config)
  built = search.build(run.setup, run.search, run.dataset, config.seed)
  state, step, rows = built.state, quick_jit(built.update), []
  batches = [built.phase.batches(i) for i in range(STEPS)]
  for batch in batches:
    state, values = step(state, jax.device_put(batch))
    rows.append({k: float(v) for k, v in values.items()})
  means = {k: sum(row[k] for row in rows) / STEPS for k in rows[0]}

  parts = [batch[half] for batch in batches for half in ('train', 'valid')]
  assert recorded['labels'] == [
      int(label) for part in parts for label in part['label']]
  check_sums(flat([part['image'] for part in parts]), recorded['images'],
             'images')
  check_numbers({k: [row[k] for row in rows] for k in rows[0]},
                recorded['metrics'])
  check_numbers(built.phase.observe(state, means, built.phase.memo)[0],
                recorded['observed'])
  for kind in ('alpha', 'beta'):
    for cell_type, values in recorded[kind].items():
      np.testing.assert_allclose(
          flat(getattr(state.arch, kind)[cell_type]), values, rtol=0,
          atol=ATOL, err_msg=f'{kind} {cell_type}')
  check_sums(flat(state.theta), recorded['theta'], 'theta')
  check_sums(flat(state.theta_opt), *recorded['theta_opt'], 'momentum')
  # Leaf by leaf: Adam's second moments are tiny beside its first.
  moments = [a for a in map(flat, jax.tree.leaves(state.arch_opt)) if a.size]
  for i, (a, b) in enumerate(zip(moments, recorded['arch_opt'], strict=True)):
    check_sums(a, b, f'leaf {i} of Adam')
  genotype = run.setup.method.derive(run.setup.space, state.arch)
  assert genotypes.to_text(genotype) == recorded['genotype']


# ------------------------------------------------------- counts, retraining


@pytest.mark.parametrize('space', STATES['spaces'])
def test_random_genotypes_and_counts(space):
  recorded = STATES['spaces'][space]
  run = run_lib.prepare(config_of('rome_v2', space))
  setup, found = run.setup, random_genotypes(space, 3)
  assert [genotypes.to_text(g) for g in found] == recorded['random']
  supernet = setup.family.count_supernet(
      setup.space, setup.sizes_of(run.search), setup.stem)
  counts = [retrain.count(setup, run.retrain, g) for g in found]
  assert [[count.params, count.macs, supernet.params, supernet.macs]
          for count in counts] == recorded['counts']


@pytest.mark.parametrize('space', [
    'nasbench201', *(pytest.param(name, marks=pytest.mark.slow)
                     for name in RETRAINED if name != 'nasbench201')])
def test_three_steps_of_a_retraining(space):
  recorded = STATES['retrainings'][space]
  config = config_of('rome_v2', space, RETRAINED[space])
  genotype = random_genotypes(space, 1)[0]
  assert genotypes.to_text(genotype) == recorded['genotype']
  run = run_lib.prepare(config)
  trainer = retrain.Trainer(run.setup, run.retrain, run.dataset)
  phase, program, carry = trainer.prepare(
      retrain.Job('derived-0', 'derived', genotype, config.seed))
  for i in range(STEPS):
    carry = program.call(carry, phase.batches(i))
  means = {k: float(v) / STEPS for k, v in carry.window.items()}
  state = carry.state
  check_numbers(phase.observe(state, means, carry.memo)[0]
                | phase.test(state), recorded['metrics'])
  check_sums(flat(state.params), recorded['params'], 'params')
  check_sums(flat(state.batch_stats), recorded['batch_stats'], 'statistics')
  check_sums(flat(state.opt), *recorded['opt'], 'momentum')


# ------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_whole_run(tmp_path):
  recorded = STATES['run']
  assert run_lib.run(make_config(RUN), tmp_path) == 0
  rows = metrics.read(tmp_path)
  for row, known in zip(rows, recorded['metrics'], strict=True):
    assert row['phase'] == known.pop('phase')
    check_numbers(row, known)
  result = json.loads((tmp_path / 'result.json').read_text())
  for name in ('genotype', 'params', 'macs'):
    assert result[name] == recorded[name]
  assert result['summary']['derived']['mean'] == pytest.approx(
      recorded['summary']['derived']['mean'])


def test_search_of_0_1_0_is_refused_with_what_to_do(tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(FOLDER / 'workdir_0_1_0', workdir)
  before = {path: path.read_bytes()
            for path in workdir.rglob('*') if path.is_file()}
  with pytest.raises(errors.UserError, match=(
      r'run of rome_jax 0\.1\.0, .*; finish it with that version or use '
      'another --workdir$')):
    run_lib.run(make_config(RUN), workdir)
  assert before == {path: path.read_bytes()
                    for path in workdir.rglob('*') if path.is_file()}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_the_same_words(name):
  words = REWORDED.get(name) or re.escape(STATES['refusals'][name]) + '$'
  with pytest.raises(errors.UserError, match=f'^{words}'):
    run_lib.prepare(config_of(*REFUSED[name]))
