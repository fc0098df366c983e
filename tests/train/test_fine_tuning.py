"""Training on from another run's network."""

import json

import jax
import numpy as np
import pytest
from tiny_run import final_arrays

import rome_jax as rj
from rome_jax import errors
from rome_jax.cli import run as run_lib
from rome_jax.config import checks
from rome_jax.train import retrain


def config_of(**fields):
  config = rj.config.defaults()
  config.space, config.dataset, config.genotype = 's2', 'arrays', GENOTYPE
  config.retrain.update(
      epochs=1, auxiliary=False, cutout=0, cells=1, channels=4, batch_size=8,
      augment='none', drop_path=0., lr=.1, **fields)
  return config


CELL = [[('skip_connect', 0), ('sep_conv_3x3', 1)]] * 4
GENOTYPE = (f'Genotype(normal={CELL}, normal_concat=[2, 3, 4, 5], '
            f'reduce={CELL}, reduce_concat=[2, 3, 4, 5])')


def dataset(classes):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (24, 8, 8, 3), np.uint8)
  return rj.data.from_arrays((images, np.arange(24) % classes))


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('tuned') / 'first'
  run_lib.run(config_of(), workdir, dataset(2))
  return workdir


@pytest.mark.parametrize('classes', [2, 3])
def test_weights_are_those_of_the_other_run(first, tmp_path, classes):
  """One step of rate 0 changes nothing; a head of other classes is fresh."""
  config = config_of(init_from=str(first))
  config.retrain.lr, config.retrain.weight_decay = 1e-30, 0.
  run_lib.run(config, tmp_path / 'run', dataset(classes))
  old, new = (
      {key: value for key, value in final_arrays(
          path, f'retrain/{json.loads(note.read_text())["name"]}')[1]
       if 'state.params' in key}
      for path in (first, tmp_path / 'run')
      for note in [next((path / 'phases').glob('given-*.json'))])
  assert old.keys() == new.keys() and len(old) > 5
  differing = {key for key in old if old[key] != new[key]}
  assert all('head' in key for key in differing)
  assert bool(differing) == (classes == 3)


def test_another_network_is_refused(first):
  variables = retrain.read_start(str(first))
  wider = jax.tree.map(lambda a: np.zeros((*a.shape[:-1], a.shape[-1] + 1)),
                       variables)
  with pytest.raises(errors.UserError, match='holds another network: at .*cell'
                     '.* give its genotype'):
    retrain.started(wider, variables, 'runs/x')


def test_mistakes(first, tmp_path):
  config = config_of(init_from=str(first))
  config.genotype = ''
  with pytest.raises(errors.UserError, match='init_from=.* needs'):
    checks.validate(config)
  with pytest.raises(errors.UserError, match='must be the folder of a finish'):
    retrain.read_start(str(tmp_path / 'none'))
  with pytest.raises(errors.UserError, match='holds no finished retraining'):
    retrain.read_start(str(tmp_path))
