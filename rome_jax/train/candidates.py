"""Choosing among architectures with a trained supernet's weights.

For methods that learn no alpha: evolution (Guo et al., ECCV 2020), random
search (Li and Talwalkar, UAI 2019) or local search over the space, scored on
the validation half.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rome_jax import data, errors, files
from rome_jax.data import splits
from rome_jax.devices import hosts
from rome_jax.methods import evolve, split
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


def trainer(setup: Setup, recipe: SearchRecipe, retraining: RetrainRecipe,
            dataset: data.Dataset, seed: int, epochs: int) -> retrain.Trainer:
  """What trains an architecture on the theta half and tests on the other.

  Args:
    setup, recipe, dataset, seed: of the search.
    retraining: the recipe by which architectures are trained alone.
    epochs: instead of its own.

  Raises:
    UserError: there are no steps, or fewer images than a batch has.
  """
  if not epochs:
    raise errors.UserError(
        'config.search.epochs=0 gives no steps; use at least 1, or set '
        'config.genotype to skip the search')
  theta, alpha = data.halves(
      dataset.train.labels, recipe.fraction_theta, recipe.fraction_alpha, seed)
  return retrain.Trainer(
      setup, retraining._replace(epochs=epochs, holdout=0.),
      dataset._replace(train=splits.take(dataset.train, theta),
                       test=splits.take(dataset.train, alpha)))


class Leaf(NamedTuple):
  """A trained supernet, or a part of one that was split.

  Attributes:
    mask: {cell type: bool [S,C]}, the candidates that it has.
    theta: its weights.
  """

  mask: Mapping[str, Any]
  theta: Any


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
           leaves: Sequence[Leaf], dataset: data.Dataset, seed: int,
           workdir: Any, stop: Any) -> Chosen | None:
  """Chooses an architecture, or continues to, in a run's folder.

  Every finished round is kept in evolution.json.

  Args:
    setup, recipe, dataset, seed: of the search.
    retraining: see `strategy`.
    leaves: of the search, or the one supernet; each architecture is scored
      by the leaf that has it.
    workdir: of the run.
    stop: an object whose `requested` ends it after a round.

  Returns:
    None if it was stopped.
  """
  searcher = strategy(setup, recipe, retraining)
  path = workdir / FILENAME
  weights = checkpoint.digest([leaf.theta for leaf in leaves])
  kept = hosts.from_first(lambda: _kept(path, weights))
  state = evolve.from_json(kept) if kept else searcher.init(seed)
  scorer = LeafScorer(
      make_scorer(setup, recipe, leaves[0].theta, dataset, seed,
                  min(recipe.population, recipe.candidates)), leaves)
  done = len(evolve.scored(state))
  with metrics.Progress(recipe.candidates, unit='architecture', initial=done,
                        label=f'search: {recipe.evolution}') as bar:
    while found := searcher.ask(state):
      if stop.requested:
        return None
      state = searcher.tell(state, scorer(found).accuracy.tolist())
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


class LeafScorer:
  """Scores architectures, each with the weights of its leaf."""

  def __init__(self, scorer: ranking.Scorer, leaves: Sequence[Leaf]):
    """Takes a scorer of the first leaf's weights; one program serves all."""
    self._space = scorer.space
    self._masks = [leaf.mask for leaf in leaves]
    self._scorers = [scorer, *(
        scorer.with_weights(leaf.theta) for leaf in leaves[1:])]

  def __call__(self, found: Sequence[Genotype],
               numbers: Sequence[int] | None = None,
               record: ranking.Record | None = None, progress: bool = False,
               stop: Any = None) -> ranking.Scores:
    """Scores N genotypes.

    Args:
      found: the genotypes.
      numbers: their leaves; None: those that have them.
      record, progress, stop: as of `ranking.Scorer`; leaves after the first
        have records of their own beside it.

    Returns:
      Scores; of fewer than N, in no order, if `stop` was requested.
    """
    if numbers is None:
      numbers = [split.leaf_of(self._space, self._masks, g) for g in found]
    parts, order = [], []
    for number, scorer in enumerate(self._scorers):
      rows = [i for i, own in enumerate(numbers) if own == number]
      if not rows:
        continue
      parts.append(scorer(
          [found[i] for i in rows], record=_record_of(record, number),
          progress=progress, stop=stop))
      order += rows[:len(parts[-1].loss)]
    places = np.argsort(order)
    accuracy, loss = (np.concatenate([np.zeros(0), *(
        getattr(part, name) for part in parts)])[places]
                      for name in ('accuracy', 'loss'))
    timed = [(len(part.loss), part.rate) for part in parts
             if not np.isnan(part.rate)]
    seconds = sum(number / rate for number, rate in timed)
    return ranking.Scores(
        accuracy, loss,
        sum(number for number, _ in timed) / seconds if timed else np.nan)


def _record_of(record, number):
  if record is None or not number:
    return record
  return record._replace(path=record.path.with_stem(
      f'{record.path.stem}-{number}'))


def make_scorer(setup: Setup, recipe: SearchRecipe, theta: Any,
                dataset: data.Dataset, seed: int, block: int,
                ) -> ranking.Scorer:
  """Scores architectures on all whole batches of the validation half.

  Args:
    setup, recipe, dataset, seed: of the search.
    theta: trained weights.
    block: architectures in a call of the program.
  """
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
      block=block)
