"""The trained network of a run, read back."""

import argparse
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn

from rome_jax import errors, families, files
from rome_jax.cli import run
from rome_jax.config import checks, command_line, setup
from rome_jax.spaces import Sizes, genotypes
from rome_jax.train import notes, retrain


class About(NamedTuple):
  """What belongs to a trained network.

  Attributes:
    genotype: of its cells.
    class_names: per label; () where the data had none.
    mean, std: per channel, of images scaled to 0..1; inputs are (image / 255
      - mean) / std.
    image_size, image_channels: of its inputs, [B,H,W,C].
    figures: what the run wrote of this retraining (`test_accuracy`, ...). With
      config.retrain.holdout its tests are on the images held out. Of the best
      weights, whose `weights` is 'best', it is the largest of several tests.
    augment: how test images are fitted to their size; see
      `data.make_transform`.
  """

  genotype: genotypes.Genotype
  class_names: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  image_size: int
  image_channels: int
  figures: dict[str, Any]
  augment: str = 'none'


class Trained(NamedTuple):
  """A trained network: `logits = network.apply(variables, images)`."""

  network: nn.Module
  variables: dict[str, Any]
  about: About


def load(workdir: str | pathlib.Path, name: str | None = None,
         best: bool = False) -> Trained:
  """The trained network of a finished run.

  Args:
    workdir: of the run.
    name: which retraining, 'derived-0' say; default: the most accurate of the
      run's own genotype.
    best: its weights at its most accurate test instead of its last, which
      config.retrain.keep_best keeps.

  Raises:
    UserError: the folder holds no finished retraining of that name, or a file
      is missing or damaged.

  >>> network, variables, about = load(workdir)
  >>> images = jnp.zeros((2, about.image_size, about.image_size, 3))
  >>> network.apply(variables, images).shape, about.class_names
  ((2, 2), ('cat', 'dog'))
  """
  workdir = pathlib.Path(workdir)
  config = checks.from_json(_read(workdir / 'config.json'))
  facts = _read(workdir / run.DATASET)
  figures = notes.retraining(
      workdir, name, 'best_test_accuracy' if best else 'test_accuracy')
  with files.as_written(f'a file of {workdir}'):
    return _trained(workdir, config, facts, figures, best)


def _trained(workdir, config, facts, figures, best):
  """The network that facts and figures describe, with its weights."""
  variables = retrain.read_variables(workdir, figures['name'], best)
  if best:
    figures = _of_the_best(figures)
  genotype = genotypes.from_text(figures['genotype'])
  recipe = setup.retrain_recipe(config)
  space = checks.space(config)
  network = families.build(
      genotype, space,
      Sizes(recipe.cells, recipe.channels, facts['num_classes'],
            facts['image_size'], facts['image_channels']),
      stem=families.resolve_stem(space, config.stem, facts['image_size']),
      auxiliary=recipe.auxiliary, auxiliary_norm=recipe.auxiliary_norm)
  return Trained(
      network, variables,
      About(genotype, tuple(facts['class_names']), tuple(facts['mean']),
            tuple(facts['std']), facts['image_size'], facts['image_channels'],
            figures, recipe.augment))


def _of_the_best(figures):
  """The figures of a retraining's best weights instead of its last."""
  last = ('train_loss', 'train_accuracy')
  return {name: value for name, value in figures.items()
          if name not in last and not name.startswith('best_')} | {
              'test_accuracy': figures['best_test_accuracy'],
              'test_loss': figures['best_test_loss'],
              'steps': figures['best_step'], 'weights': 'best'}


def of(args: argparse.Namespace) -> Trained:
  """The trained network that a command's flags name; errors as `load`."""
  if args.config:
    command_line.load([f'--config={args.config}'])
  return load(checks.local_path('RUN', args.run), args.name, args.best)


def _read(path):
  if not path.exists():
    raise errors.UserError(
        f'{path.parent} is not the folder of a run: it has no {path.name}')
  return files.read_json(path)
