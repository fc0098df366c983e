"""Every file in configs/ runs: search, retraining and report, on fake data.

The fast test keeps all fields but the sizes; the slow ones take the sizes
too.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from rome_jax import config as config_lib
from rome_jax import data, evaluate, genotypes, loop, main, search

FILES = sorted(pathlib.Path(__file__).parents[1].glob('configs/*.py'))
SHAPES = {'digits': (8, 1, 10), 'cifar10': (32, 3, 10),
          'imagenet': (224, 3, 1000)}


def load(path):
  return config_lib.load([f'--config={path}']).config


def fake(config, images, size=None):
  """Random images of the shape of the config's data set."""
  native, channels, classes = SHAPES[config.dataset]
  size = size or config.image_size or native
  rng = np.random.default_rng(0)

  def split(n):
    return data.ArraySplit(
        rng.integers(0, 256, (n, size, size, channels), np.uint8),
        (np.arange(n) % classes).astype(np.int32))

  # Every class once per fraction of the search, at least.
  return data.Dataset(config.dataset, split(images), split(8), classes, size,
                      channels, (.5,) * channels, (.25,) * channels)


@pytest.fixture
def quick_compiles():
  """XLA without its costly passes: these programs run two steps."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_config_runs_two_steps(path, tmp_path):
  config = load(path)
  config.compilation_cache = ''
  config.stem = 'imagenet' if config.dataset == 'imagenet' else 'cifar'
  search_part, evaluate_part = config.search, config.evaluate
  search_part.cells = evaluate_part.cells = 3
  search_part.channels = evaluate_part.channels = 2
  search_part.batch_size = evaluate_part.batch_size = 4
  search_part.fraction_theta = search_part.fraction_alpha = .5
  search_part.max_steps = 2
  evaluate_part.epochs = 1
  evaluate_part.warmup_epochs = 0
  evaluate_part.seeds = 1
  evaluate_part.random_architectures = 0
  size = 64 if config.dataset == 'imagenet' else 32
  dataset = fake(config, 8, size if config.dataset != 'digits' else 8)
  assert main.run(config, tmp_path / 'run', dataset) == 0
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert result['search']['steps'] == 2
  assert np.isfinite(result['evaluations'][0]['test_loss'])


@pytest.mark.slow
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_full_size_search_runs_two_steps(path):
  config = load(path)
  classes = SHAPES[config.dataset][2]
  need = int(config.search.batch_size / config.search.fraction_theta) + 1
  # With per-class fractions each class needs that many images.
  if config.search.fraction_theta < .5:
    need = max(need, int(np.ceil(1 / config.search.fraction_theta)) * classes)
  dataset = fake(config, need)
  built = search.build(config, dataset)
  batch = built.phase.batches(0)
  carry = loop.init_carry(built.update, built.state, batch, built.phase.memo)
  program = loop.compile_step(built.update, carry, batch)
  for step in range(2):
    carry = program.call(carry, built.phase.batches(step % 1))
  assert int(carry.state.step) == 2
  assert all(np.isfinite(v) for v in jax.tree.leaves(
      jax.device_get(carry.window)))


@pytest.mark.slow
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_full_size_retraining_runs_two_steps(path):
  """At the config's depth, width and image size, and a batch of 4."""
  config = load(path)
  config.evaluate.batch_size = 4
  dataset = fake(config, 8)
  trainer = evaluate.Trainer(config, dataset)
  genotype = genotypes.PUBLISHED['DARTS_V2'].genotype
  network = evaluate.make_network(config, dataset, genotype)
  program, test, carry = trainer._program(network, trainer._init(network, 0))
  batches = trainer._batches(0)
  for step in range(2):
    carry = program.call(carry, batches(step))
  assert np.isfinite(test(carry.state)['test_loss'])
