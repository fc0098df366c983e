"""What every command of a run does first: open and check; compile nothing."""

import functools
import json
import sys
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rome_jax import data, errors, families
from rome_jax.config import checks, fields
from rome_jax.config import setup as door
from rome_jax.data import formats, splits
from rome_jax.devices import hosts
from rome_jax.engine import operations
from rome_jax.methods import split
from rome_jax.spaces import genotypes
from rome_jax.tables import benchmarks
from rome_jax.train import (
  candidates,
  checkpoint,
  leaves,
  memory,
  plans,
  retrain,
  search,
)
from rome_jax.train.recipes import RetrainRecipe, SearchRecipe
from rome_jax.train.setup import Setup


class Prepared(NamedTuple):
  """A run whose config, data and genotype have been checked.

  Attributes:
    config: validated.
    dataset: what it names, or what was given in its place.
    given: the genotype to retrain, or None.
    setup: names resolved to values.
    search, retrain: the recipes.
  """

  config: ConfigDict
  dataset: data.Dataset
  given: genotypes.Record | None
  setup: Setup
  search: SearchRecipe
  retrain: RetrainRecipe

  def jobs(self, genotype: genotypes.Genotype) -> list[retrain.Job]:
    """The retrainings of a genotype that the config asks for."""
    kind = 'given' if self.given else 'derived'
    return retrain.jobs(self.setup.space, self.retrain, genotype,
                        self.config.seed, kind)

  def example(self) -> genotypes.Genotype:
    """The given genotype, or a random one of the space."""
    if self.given is not None:
      return self.given.genotype
    return genotypes.random(
        self.setup.space, np.random.default_rng(self.config.seed))


def prepare(config: ConfigDict,
            dataset: data.Dataset | None = None) -> Prepared:
  """Opens and checks what a validated config names; compiles nothing.

  Raises:
    UserError: naming the field or file, its value and what is allowed.
  """
  given = given_genotype(config)
  _check_operations(config, given)
  dataset = splits.read_by(
      dataset or _load(config),
      splits.Reading(config.loader, config.loader_workers))
  setup = door.make_setup(config, dataset)
  prepared = Prepared(config, dataset, given, setup,
                      door.search_recipe(config), door.retrain_recipe(config))
  _check_data(prepared)
  _check_alike(config, dataset, given)
  return prepared._replace(setup=setup._replace(mesh=door.make_mesh(config)))


def _check_alike(config, dataset, given):
  """Finds processes that were started with something else."""
  text = fields.to_json(config)
  for name in ('data_dir', 'compilation_cache'):
    del text[name]  # Hosts may keep their files in places of their own.
  hosts.compare('config', json.dumps(text), errors.UserError)
  hosts.compare('genotype', repr(given and given.genotype), errors.UserError)
  if hosts.several():
    hosts.compare('data set', dataset.digest + checkpoint.digest(
        [dataset.train.labels, dataset.test.labels]), errors.UserError)


def given_genotype(config: ConfigDict) -> genotypes.Record | None:
  """The genotype to retrain, checked against the space; None: search.

  Raises:
    UserError: it cannot be read, or is none of the space.
  """
  if not config.genotype:
    return None
  record = benchmarks.read(
      checks.local_path('config.genotype', config.genotype),
      checks.space(config))
  families.check_genotype(
      checks.space(config), record.genotype, config.genotype)
  complaint = genotypes.complaint(record.genotype)
  if complaint:
    print(f'rome_jax: warning: {complaint}', file=sys.stderr)
  return record


def _check_operations(config, given):
  """Finds a wrong table row of the user's before anything is compiled."""
  space = checks.space(config)
  families.check_operations(space)
  names = set(space.ops)
  if given is not None:
    names |= genotypes.used_ops(given.genotype)
  # Some families have operations of their own.
  for name in sorted(names & set(operations.OPS)):
    if operations.is_users(name):
      operations.check(name)


def _load(config):
  # Random crops want the original images, not ones already fitted.
  whole = 'imagenet' in (config.search.augment, config.retrain.augment)
  data_dir = config.data_dir
  # TensorFlow Datasets reads buckets itself.
  if not config.dataset.startswith('tfds:'):
    data_dir = data_dir and checks.local_path('config.data_dir', data_dir)
  if config.dataset == 'npz':
    memory.check_file(data_dir, formats.npz_bytes(data_dir))
  return data.load(
      config.dataset, data_dir, image_size=config.image_size,
      test_fraction=config.test_fraction, seed=config.split_seed,
      lazy=True if whole else None, skip_unreadable=config.skip_unreadable,
      check=functools.partial(_check_memory, config))


def _check_memory(config, count, image_size, channels, decoded):
  """Finds images that do not fit into memory before one is decoded."""
  if not config.genotype:  # A step of a search reads a batch of each half.
    memory.check_data(count, image_size, channels, 2, config.search.batch_size,
                      'search', decoded)
  if door.retrains(config):
    memory.check_data(count, image_size, channels, 1,
                      config.retrain.batch_size, 'retrain', decoded)


def _check_data(prepared):
  """What can only be checked with the data at hand, before compiling."""
  setup, dataset, given = prepared.setup, prepared.dataset, prepared.given
  if given is None:
    _check_search(prepared)
  families.check(
      setup.space, 'config.retrain', setup.sizes_of(prepared.retrain),
      setup.stem, auxiliary=prepared.retrain.auxiliary)
  if door.retrains(prepared.config):
    _check_batch('retrain', prepared.retrain.batch_size,
                 len(dataset.train.labels), 'the number of training images')
    retrain.Trainer(setup, prepared.retrain, dataset)
  if given is not None:
    retrain.count(setup, prepared.retrain, given.genotype)


def _check_search(prepared):
  setup, recipe, dataset = prepared.setup, prepared.search, prepared.dataset
  trained = plans.supernets(setup.method, recipe)
  for each in trained:
    try:
      families.check(
          setup.space, 'config.search', setup.sizes_of(each), setup.stem)
    except errors.UserError as error:
      if len(trained) == 1:
        raise
      raise errors.UserError(str(error).replace(
          'config.search.cells=', 'config.search.stage_cells: ')) from None
  _check_half(prepared)
  if not trained:
    candidates.trainer(setup, recipe, prepared.retrain, dataset,
                       prepared.config.seed, recipe.epochs)
    return
  halves = search.make_halves(setup, recipe, dataset, prepared.config.seed)
  search.num_steps(recipe, halves.train.steps_per_epoch)
  splits = recipe.split != split.NO_SPLIT
  if setup.method.derive is None or (
      splits and recipe.split_choice == split.EVOLUTION):
    candidates.check(setup, recipe, prepared.retrain,
                     len(halves.train.indices), prepared.config.seed)
  if splits and recipe.split_choice == split.HALVING:
    _check_batch(
        'retrain', prepared.retrain.batch_size, len(halves.train.indices),
        'the images of the theta half, with config.search.split_choice='
        "'halving'")


def _check_half(prepared):
  """Finds a batch that is larger than a half of the training images."""
  recipe, labels = prepared.search, prepared.dataset.train.labels
  supernets = plans.supernets(prepared.setup.method, recipe)
  section, batch = ('search', recipe) if supernets else (
      'retrain', prepared.retrain)
  parts = data.halves(labels, recipe.fraction_theta, recipe.fraction_alpha,
                      prepared.config.seed)
  sizes = tuple(map(len, parts))
  field = ('fraction_theta', 'fraction_alpha')[int(sizes[1] < sizes[0])]
  _check_batch(
      section, batch.batch_size, min(sizes),
      f'the share config.search.{field}={getattr(recipe, field)} of the '
      f'{len(labels):,} training images')


def _check_batch(section, size, count, what):
  if size > count:
    raise errors.UserError(
        f'config.{section}.batch_size={size} must be at most {count:,}: {what}')


def described(prepared: Prepared) -> list[str]:
  """Lines that say what was checked; reads one batch of each kind."""
  config, dataset, given = prepared.config, prepared.dataset, prepared.given
  setup = prepared.setup
  lines = [
      f'config: {setup.method.name} in {setup.space.name}, '
      f'{len(fields.FIELDS)} fields', what_was_read(dataset)]
  if given is None:
    lines += _search(prepared)
  if door.retrains(config):
    lines.append(_retraining(prepared))
  if given is not None:
    lines.append(f'genotype: {genotypes.to_text(given.genotype)}')
  return [*lines, 'nothing was compiled; --dry-run also says what it costs']


def what_was_read(dataset: data.Dataset) -> str:
  """One line: the images of each split, and what was not read."""
  return errors.printable('; '.join([
      f'data: {dataset.name}, {len(dataset.train.labels):,} training and '
      f'{len(dataset.test.labels):,} test images of {dataset.image_size} x '
      f'{dataset.image_size} x {dataset.image_channels}, '
      f'{dataset.num_classes} classes', *dataset.notes]))


def _search(prepared):
  """A line for each search of the plan."""
  setup, recipe = prepared.setup, prepared.search
  if not plans.supernets(setup.method, recipe):
    return [_candidates(prepared)]
  halves = search.make_halves(
      setup, recipe, prepared.dataset, prepared.config.seed)
  halves(0)
  steps = search.num_steps(recipe, halves.train.steps_per_epoch)
  lines = []
  for part_setup, each, part in plans.largest(setup, recipe):
    found = setup.family.count_supernet(
        part_setup.space, setup.sizes_of(each), setup.stem)
    lines.append(
        f'{part.name}: {steps:,} steps of {each.batch_size} images, '
        f'K={each.k}; {len(halves.train.indices):,} images for theta, '
        f'{len(halves.valid.indices):,} for alpha and beta; '
        f'{_size(each, found)}')
  if recipe.split != split.NO_SPLIT:
    ends = ('up to the end of these' if recipe.split_inherit == split.EVERYTHING
            else 'each for so many')
    lines.append(
        f'split: after epochs {recipe.split_epochs} into '
        f'{leaves.number(setup.space, recipe)} leaves, {ends}')
  return lines


def _candidates(prepared):
  setup, recipe = prepared.setup, prepared.search
  trainer = candidates.trainer(
      setup, recipe, prepared.retrain, prepared.dataset, prepared.config.seed,
      recipe.epochs)
  trainer.batches(0)(0)
  train, test = trainer.dataset.train.labels, trainer.dataset.test.labels
  found = retrain.count(setup, prepared.retrain, prepared.example())
  return (f'search: {recipe.candidates} random architectures, each trained '
          f'alone for {trainer.steps:,} steps of {prepared.retrain.batch_size} '
          f'images; {len(train):,} images to train on, {len(test):,} to test '
          f'on; {_size(prepared.retrain, found)} in one of them')


def _retraining(prepared):
  setup, recipe = prepared.setup, prepared.retrain
  trainer = retrain.Trainer(setup, recipe, prepared.dataset)
  trainer.batches(0)(0)
  example = prepared.example()
  of = '' if prepared.given else ' in a random network'
  return (f'retraining: {len(prepared.jobs(example))} times {trainer.steps:,} '
          f'steps of {recipe.batch_size} images; '
          f'{_size(recipe, retrain.count(setup, recipe, example))}{of}')


def _size(recipe, count):
  return (f'{recipe.cells} cells of {recipe.channels} channels, '
          f'{count.params:,} parameters, {count.macs:,} multiply-adds')
