"""The door: what a config becomes before anything is built."""

import numpy as np
import pytest

from rome_jax import data, errors
from rome_jax.config import command_line, fields
from rome_jax.config import setup as door
from rome_jax.train import recipes


def dataset(size=32):
  split = data.ArraySplit(np.zeros((4, size, size, 3), np.uint8),
                          np.arange(4, dtype=np.int32) % 2)
  return data.Dataset('fake', split, split, 2, size, 3, (.5,) * 3, (.25,) * 3)


@pytest.mark.parametrize('section, recipe', [
    ('search', recipes.SearchRecipe), ('retrain', recipes.RetrainRecipe)])
def test_a_recipe_has_the_fields_of_its_section(section, recipe):
  rows = {name.split('.')[1]: field for name, field in fields.FIELDS.items()
          if name.startswith(f'{section}.')}
  assert tuple(rows) == recipe._fields
  for name, kind in recipe.__annotations__.items():
    assert type(rows[name].default) is kind, name
    assert rows[name].default == recipe._field_defaults[name]


def test_values_of_a_config_reach_the_recipes():
  config = command_line.load([
      '--config=quickstart', '--config.search.k=3',
      '--config.retrain.nesterov=true']).config
  search, retrain = door.search_recipe(config), door.retrain_recipe(config)
  assert (search.k, search.cells, retrain.nesterov, retrain.channels) == (
      3, 3, True, 8)
  with pytest.raises(AttributeError):
    search.k = 4
  settings = door.settings(config, 'somewhere')
  assert (settings.workdir.name, settings.log_every) == ('somewhere', 10)


@pytest.mark.parametrize('stem, size, found', [
    ('auto', 127, 'cifar'), ('auto', 128, 'imagenet'),
    ('cifar', 224, 'cifar'), ('imagenet', 32, 'imagenet')])
def test_a_setup_resolves_every_name(stem, size, found):
  config = fields.defaults()
  config.stem, config.space, config.in_degree = stem, 's2', 1
  setup = door.make_setup(config, dataset(size))
  assert setup.stem == found and setup.mesh is None
  assert setup.space.in_degrees == (1, 1, 1, 1)
  assert setup.method.name == 'rome_v2'
  assert setup.sizes == (8, 16, 2, size, 3)
  assert setup.sizes_of(door.retrain_recipe(config)) == (20, 36, 2, size, 3)
  assert setup.family.stems == ('cifar', 'imagenet')


def test_a_setup_of_an_unknown_space():
  config = fields.defaults()
  config.space = 's00'
  with pytest.raises(errors.UserError, match="did you mean 's0'"):
    door.make_setup(config, dataset())


def test_what_is_retrained():
  config = fields.defaults()
  assert door.retrains(config)
  config.retrain.seeds = 0
  assert not door.retrains(config)
  config.retrain.random_architectures = 2
  assert door.retrains(config)
