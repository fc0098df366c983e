"""The door: a config becomes the typed values that all else takes.

`rome_jax.train` and what is below it know nothing of configs.
"""

import os
import pathlib

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rome_jax import data, errors, families
from rome_jax.config import checks
from rome_jax.devices import mesh as mesh_lib
from rome_jax.methods import table
from rome_jax.methods.method import TrainRandom
from rome_jax.methods.rows import gdas, pada
from rome_jax.spaces import Sizes
from rome_jax.train import loop, recipes
from rome_jax.train.setup import Setup


def search_recipe(config: ConfigDict) -> recipes.SearchRecipe:
  """The section `search` of a config.

  >>> from rome_jax import config as config_lib
  >>> search_recipe(config_lib.defaults()) == recipes.SearchRecipe()
  True
  """
  return recipes.SearchRecipe(**config.search.to_dict())._replace(
      k=checks.samples(config))


def retrain_recipe(config: ConfigDict) -> recipes.RetrainRecipe:
  """The section `retrain` of a config.

  >>> from rome_jax import config as config_lib
  >>> retrain_recipe(config_lib.defaults()) == recipes.RetrainRecipe()
  True
  """
  return recipes.RetrainRecipe(**config.retrain.to_dict())


def settings(config: ConfigDict, workdir: str | os.PathLike) -> loop.Settings:
  """The loop's part of a config."""
  return loop.Settings(pathlib.Path(workdir), config.log_every,
                       config.checkpoint_every, config.keep_checkpoints)


def make_setup(config: ConfigDict, dataset: data.Dataset,
               mesh: Mesh | None = None) -> Setup:
  """Resolves the names in a config.

  Args:
    config: validated.
    dataset: gives the sizes of images and logits.
    mesh: of `make_mesh`; None for one device.

  Raises:
    UserError: the space cannot be changed as asked or names no family.
  """
  space = checks.space(config)
  sizes = Sizes(
      config.search.cells, config.search.channels, dataset.num_classes,
      dataset.image_size, dataset.image_channels)
  stem = families.resolve_stem(space, config.stem, dataset.image_size)
  method = table.METHODS[config.method]
  if config.search.scalar_gates:
    method = gdas.with_scalar_gates(method)
  if method.name in pada.ROWS:
    method = pada.with_options(
        method, by_site=config.search.path_law == 'site',
        delta=config.search.path_delta, clip_norm=config.search.clip_norm)
  return Setup(space, families.get(space), method, sizes, stem, mesh)


def make_mesh(config: ConfigDict) -> Mesh | None:
  """The mesh that a config asks for; None where that is one device.

  Raises:
    UserError: the devices cannot be arranged so, or K or a batch cannot be
      cut evenly (nothing is padded: that would change the sums).
  """
  mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.sample)
  if config.search.split_together and mesh_lib.sizes(mesh)[1] == 1:
    raise errors.UserError(
        'config.search.split_together must be false with config.mesh.sample=1: '
        'leaves train side by side in groups of devices')
  if mesh.size == 1:
    return None
  _check_cuts(config, *mesh_lib.sizes(mesh))
  return mesh


def retrains(config: ConfigDict) -> bool:
  """Whether anything is trained from scratch."""
  return bool(config.retrain.seeds or config.retrain.random_architectures)


def _check_cuts(config, data_parts, groups):
  searches = not config.genotype
  alone = searches and isinstance(
      table.METHODS[config.method].plan, TrainRandom)
  shape = (f'a mesh of config.mesh.data={data_parts} by '
           f'config.mesh.sample={groups} devices')
  # Leaves side by side do not share their samples.
  spread = searches and not config.search.split_together
  if spread and (k := checks.samples(config)) % groups:
    raise errors.UserError(
        f'config.search.k={k} must be a multiple of {groups} on '
        f'{shape}')
  for used, name, devices in (
      (searches and not alone, 'search', data_parts),
      (retrains(config) or alone, 'retrain', data_parts * groups)):
    size, accumulate = config[name].batch_size, config[name].accumulate
    if used and size % (devices * accumulate):
      also = (f' with config.{name}.accumulate={accumulate}'
              if accumulate > 1 else '')
      raise errors.UserError(
          f'config.{name}.batch_size={size} must be a multiple of '
          f'{devices * accumulate} on {shape}{also}')
