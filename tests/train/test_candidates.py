"""The random search over a supernet's weights."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import CONFIG

from rome_jax import data, families, spaces
from rome_jax.cli import run as run_lib
from rome_jax.engine import weights
from rome_jax.families import darts
from rome_jax.methods import table
from rome_jax.spaces import Sizes, genotypes
from rome_jax.train import candidates, recipes
from rome_jax.train.setup import Setup

CLASSES = 3


def dataset(n=24):
  rng = np.random.default_rng(0)
  split = data.ArraySplit(rng.integers(0, 256, (n, 8, 8, 3), np.uint8),
                          np.arange(n, dtype=np.int32) % CLASSES)
  return data.Dataset('npz', split, split, CLASSES, 8, 3, (.5,) * 3, (.25,) * 3)


def test_accuracies_are_those_of_one_network_at_a_time(tiny):
  """Counted in NumPy, one genotype and batch after another."""
  network = darts.Supernet(tiny, 2, 4, CLASSES)
  theta = weights.init_supernet(network, 0, 8, 3)
  batches = data.Batches(
      dataset().train, None, 8, 0,
      data.make_transform('none', dataset(), train=False))
  found = candidates.draw(tiny, 5, 3)
  scores = candidates.accuracies(network, theta, found, batches, 3)
  apply = jax.jit(network.apply)
  for genotype, score in zip(found, scores):
    cells, right = families.arch_of(genotype, tiny), 0
    for step in range(3):
      batch = batches(step)
      logits = np.asarray(apply(
          {'params': theta}, batch['image'], cells,
          rngs={'noise': jax.random.key(0)}))
      right += int((logits.argmax(-1) == batch['label']).sum())
    assert score == pytest.approx(right / 24)
  assert len(set(scores)) > 1


def test_the_best_is_derived(tiny, capsys):
  """A network whose accuracy is the number of separable convolutions."""

  def apply(variables, images, cells, rngs):
    place = tiny.ops.index('sep_conv_3x3')
    count = sum((cell.ops == place).sum() for cell in cells.values())
    right = jnp.arange(len(images)) < count
    return jax.nn.one_hot(jnp.where(right, 0, 1), CLASSES)

  data_set = dataset()
  zeros = data.ArraySplit(data_set.train.images, np.zeros(24, np.int32))
  row = table.METHODS['spos']
  setup = Setup(tiny, families.get(tiny), row, Sizes(2, 4, CLASSES, 8), 'cifar')
  recipe = recipes.SearchRecipe(candidates=40, augment='none', batch_size=8)
  valid = data.Batches(zeros, np.arange(16), 8, 0, None)
  genotype, figures = candidates.best(
      types.SimpleNamespace(space=tiny, apply=apply), setup, recipe, {}, valid,
      data_set, 0)

  def convolutions(genotype):
    return sum(op == 'sep_conv_3x3' for nodes in (
        genotype.normal, genotype.reduce) for node in nodes for op, _ in node)

  counts = [convolutions(g) for g in candidates.draw(tiny, 40, 0)]
  assert convolutions(genotype) == max(counts)
  assert figures == {
      'candidates': 40, 'candidate_accuracy': max(counts) / 8,
      'candidate_accuracy_mean': pytest.approx(np.mean(counts) / 8)}
  assert 'evaluating 40 architectures' in capsys.readouterr().err


def test_draws_are_uniform_and_depend_on_the_seed(tiny):
  drawn = candidates.draw(tiny, 400, 7)
  assert drawn == candidates.draw(tiny, 400, 7)
  assert drawn != candidates.draw(tiny, 400, 8)
  # Node 2 keeps 2 of 3 edges: each predecessor in 2/3 of the cells; the
  # standard deviation of the mean of 400 is .024.
  for pred in range(3):
    share = np.mean([pred in dict((p, op) for op, p in g.normal[1])
                     for g in drawn])
    assert share == pytest.approx(2 / 3, abs=.1)


def test_a_search_without_parameters_ends_in_a_genotype(
    tiny, monkeypatch, tmp_path):
  monkeypatch.setitem(spaces.SPACES, 'tiny', tiny)
  path, workdir = tmp_path / 'tiny.py', tmp_path / 'run'
  path.write_text(CONFIG.format(cache=''))
  jax.config.update('jax_disable_most_optimizations', True)
  try:
    assert run_lib.main([
        f'--config={path}', f'--workdir={workdir}', '--config.method=spos',
        '--config.search.max_steps=4', '--config.search.candidates=6',
        '--config.retrain.seeds=0']) == 0
  finally:
    jax.config.update('jax_disable_most_optimizations', False)
  found = json.loads((workdir / 'result.json').read_text())['search']
  assert found['candidates'] == 6 and found['valid_loss'] is None
  assert 0 <= found['candidate_accuracy_mean'] <= found['candidate_accuracy']
  record = json.loads((workdir / 'genotype.json').read_text())
  assert (record['method'], record['step']) == ('spos', 4)
  genotype = genotypes.load(str(workdir / 'genotype.json'))
  assert genotype in candidates.draw(tiny, 6, 0)
