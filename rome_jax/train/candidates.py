"""Choosing among architectures with a trained supernet's weights.

For methods that learn no alpha: evolution (Guo et al., ECCV 2020), random
search (Li and Talwalkar, UAI 2019) or local search over the space, scored on
the validation half.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from rome_jax import data, errors, files
from rome_jax.devices import hosts
from rome_jax.methods import evolve
from rome_jax.spaces import Space, genotypes
from rome_jax.spaces.genotypes import Genotype
from rome_jax.train import checkpoint, metrics, ranking, retrain, search
from rome_jax.train.recipes import RetrainRecipe, SearchRecipe
from rome_jax.train.setup import Setup

FILENAME = 'evolution.json'


def generator(seed: int) -> np.random.Generator:
  """Where random architectures come from.

  No retraining of one draws from this key: theirs are numbered from 0.
  """
  return np.random.Generator(np.random.Philox(key=[seed, 2**32]))


def draw(space: Space, number: int, seed: int) -> list[Genotype]:
  """`number` uniform genotypes of a space, the same for the same seed."""
  rng = generator(seed)
  return [genotypes.random(space, rng) for _ in range(number)]


def options(recipe: SearchRecipe) -> evolve.Options:
  """The part of a recipe that says how architectures are chosen.

  >>> options(SearchRecipe(candidates=1000)) == evolve.SPOS
  True
  """
  return evolve.Options(
      *(getattr(recipe, name) for name in evolve.Options._fields))


def strategy(setup: Setup, recipe: SearchRecipe,
             retraining: RetrainRecipe) -> evolve.Strategy:
  """The strategy of a recipe; budgets count the network to be retrained.

  Args:
    setup, recipe: of the search.
    retraining: the recipe of the network that is trained in the end.

  Raises:
    UserError: an option is wrong.
  """
  return evolve.STRATEGIES[recipe.evolution](
      setup.space, options(recipe),
      lambda genotype: retrain.count(setup, retraining, genotype))


def check(setup: Setup, recipe: SearchRecipe, retraining: RetrainRecipe,
          images: int, seed: int) -> None:
  """Finds, before a supernet is trained, what would end its choice.

  Args:
    setup, recipe, seed: of the search.
    retraining: see `strategy`.
    images: of the theta half.

  Raises:
    UserError: an option is wrong, no architecture within the budgets was
      found, or there are too few images to calibrate.
  """
  if recipe.calibration > images:
    raise errors.UserError(
        f'config.search.calibration={recipe.calibration} must be at most '
        f'{images:,}, the images of the theta half')
  try:
    strategy(setup, recipe, retraining).init(seed)
  except errors.UserError as error:
    raise errors.UserError(f'config.search: {error}') from None


class Chosen(NamedTuple):
  """The outcome of a choice.

  Attributes:
    genotype: the most accurate.
    figures: {'candidates': how many were scored, 'candidate_accuracy': of the
      best, 'candidate_accuracy_mean': of all}.
  """

  genotype: Genotype
  figures: dict[str, Any]


def choose(setup: Setup, recipe: SearchRecipe, retraining: RetrainRecipe,
           theta: Any, dataset: data.Dataset, seed: int, workdir: Any,
           stop: Any) -> Chosen | None:
  """Chooses an architecture, or continues to, in a run's folder.

  Every finished round is kept in evolution.json.

  Args:
    setup, recipe, dataset, seed: of the search.
    retraining: see `strategy`.
    theta: trained weights.
    workdir: of the run.
    stop: an object whose `requested` ends it after a round.

  Returns:
    None if it was stopped.
  """
  searcher = strategy(setup, recipe, retraining)
  path, weights = workdir / FILENAME, checkpoint.digest(theta)
  kept = hosts.from_first(lambda: _kept(path, weights))
  state = evolve.from_json(kept) if kept else searcher.init(seed)
  scorer = _scorer(setup, recipe, theta, dataset, seed)
  done = len(evolve.scored(state))
  with metrics.Progress(recipe.candidates, unit='architecture', initial=done,
                        label=f'search: {recipe.evolution}') as bar:
    while found := searcher.ask(state):
      if stop.requested:
        return None
      state = searcher.tell(state, scorer(found).accuracy)
      hosts.from_first(functools.partial(_keep, path, weights, state))
      done += len(found)
      bar.update(done, best=evolve.best(state)[1])
  genotype, accuracy = evolve.best(state)
  mean = np.mean([score for _, score in evolve.scored(state)])
  return Chosen(genotype, {
      'candidates': done, 'candidate_accuracy': accuracy,
      'candidate_accuracy_mean': float(mean)})


def _kept(path, weights):
  """The state of a choice with these weights, or None."""
  found = files.read_json(path) if path.exists() else {}
  return found['state'] if found.get('weights') == weights else None


def _keep(path, weights, state):
  files.write_json(path, {
      'weights': weights, 'history': evolve.history(state),
      'state': evolve.to_json(state)})


def _scorer(setup, recipe, theta, dataset, seed):
  """Scores rounds on all whole batches of the validation half."""
  halves = search.make_halves(setup, recipe, dataset, seed)
  plain = data.make_transform(recipe.augment, dataset, train=False)

  def batches(half, size):
    return data.Batches(half.split, half.indices, size, half.seed, plain)

  valid = batches(halves.valid, recipe.batch_size)
  calibration = None
  if recipe.calibration:
    calibration = batches(halves.train, recipe.calibration)(0)['image']
  return ranking.Scorer(
      search.make_supernet(setup, recipe), theta,
      ranking.FirstBatches(valid, valid.steps_per_epoch),
      norm='recalibrated' if recipe.calibration else 'batch',
      calibration=calibration, dtype=recipe.dtype, mesh=setup.mesh,
      block=min(recipe.population, recipe.candidates))
