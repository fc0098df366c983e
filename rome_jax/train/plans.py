"""Plans: what a method does between its data and a genotype.

Most search once. P-DARTS searches in stages, DARTS' random search trains
architectures one by one. Each part is a phase of its own, with checkpoints,
metrics and, once it is done, a note: so a run that was killed continues within
its part and repeats no other.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rome_jax import data, errors
from rome_jax.devices import mesh as mesh_lib
from rome_jax.methods import evolve, split
from rome_jax.methods.method import (
    ArchParams,
    Evolve,
    Method,
    Stages,
    TrainRandom,
    full_mask,
    mask_from_names,
    mask_to_names,
)
from rome_jax.spaces import Space, genotypes
from rome_jax.train import (
    candidates,
    leaves,
    loop,
    notes,
    recipes,
    retrain,
    search,
)
from rome_jax.train.recipes import RetrainRecipe, SearchRecipe
from rome_jax.train.setup import Setup


class Stage(NamedTuple):
  """One search of P-DARTS.

  Attributes:
    part: its name and number.
    recipe: the run's, with the cells and the dropout of the stage.
    keep: candidates that each site keeps after it; None after the last.
  """

  part: search.Part
  recipe: SearchRecipe
  keep: int | None


def run(setup: Setup, recipe: SearchRecipe, retraining: RetrainRecipe,
        dataset: data.Dataset, seed: int, settings: loop.Settings, writer: Any,
        stop: Any, origin: Mapping[str, Any] | None = None) -> search.Searched:
  """Follows a method's plan, or continues it, in the folder of `settings`.

  Args:
    setup, recipe, dataset, seed, settings, writer, stop, origin: as in
      `search.run`.
    retraining: the recipe by which architectures are trained alone.
  """
  common = dataset, seed, settings, writer, stop, origin
  plan = setup.method.plan
  if recipe.split != split.NO_SPLIT:
    return leaves.run(setup, recipe, retraining, *common)
  if isinstance(plan, Stages):
    return _in_stages(setup, recipe, *common)
  if isinstance(plan, TrainRandom):
    return _random(setup, recipe, retraining, *common)
  if isinstance(plan, Evolve) or setup.method.derive is None:
    return _choose(setup, recipe, retraining, *common)
  outcome, genotype = search.run(setup, recipe, *common)
  return search.Searched(
      outcome.finished, genotype, outcome.scalars,
      outcome.figures | {'phase': search.ONLY.name})


def supernets(method: Method, recipe: SearchRecipe) -> tuple[SearchRecipe, ...]:
  """The recipe of every supernet that a plan trains, in order.

  >>> from rome_jax import methods
  >>> [r.cells for r in supernets(methods.p_darts, SearchRecipe())]
  [5, 11, 17]
  >>> supernets(methods.random_search, SearchRecipe())
  ()
  """
  if isinstance(method.plan, TrainRandom):
    return ()
  if isinstance(method.plan, Stages):
    return tuple(stage.recipe for stage in stages(recipe))
  return (recipe,)


# ------------------------------------------------ choosing with a supernet


def _choose(setup, recipe, retraining, dataset, seed, settings, writer, stop,
            origin):
  outcome, _ = search.run(
      setup, recipe, dataset, seed, settings, writer, stop, origin)
  chosen = candidates.choose(
      setup, recipe, retraining,
      [candidates.Leaf(full_mask(setup.space), outcome.state.theta)], dataset,
      seed, settings.workdir, stop) if outcome.finished else None
  if chosen is None:
    return search.Searched(False, None, outcome.scalars, outcome.figures)
  search.save_genotype(
      settings.workdir, setup, seed, outcome.figures['steps'],
      chosen.genotype, origin)
  return search.Searched(
      True, chosen.genotype, outcome.scalars,
      outcome.figures | chosen.figures | {'phase': search.ONLY.name})


# ------------------------------------------------------------------ P-DARTS


def stages(recipe: SearchRecipe) -> tuple[Stage, ...]:
  """The stages that a recipe's `stage_*` fields describe.

  Raises:
    UserError: a field is no list of numbers, or their lengths do not fit.

  >>> [stage.keep for stage in stages(SearchRecipe())]
  [5, 3, None]
  """
  cells = recipes.numbers('stage_cells', recipe.stage_cells, int, 1)
  if not cells:
    raise errors.UserError(
        "config.search.stage_cells='' must be at least one whole number")
  keeps = recipes.numbers('stage_keep', recipe.stage_keep, int, 1)
  rates = recipes.numbers(
      'stage_skip_dropout', recipe.stage_skip_dropout, float, 0)
  for name, found, wanted in (('stage_keep', keeps, len(cells) - 1),
                              ('stage_skip_dropout', rates, len(cells))):
    if len(found) != wanted:
      what = f'{wanted} numbers' if wanted else 'empty'
      raise errors.UserError(
          f'config.search.{name}={getattr(recipe, name)!r} must be {what} '
          f'with config.search.stage_cells={recipe.stage_cells!r}')
  if list(keeps) != sorted(set(keeps), reverse=True):
    raise errors.UserError(
        f'config.search.stage_keep={recipe.stage_keep!r} must fall from stage '
        'to stage')
  if high := [rate for rate in rates if rate >= 1]:
    raise errors.UserError(
        f'config.search.stage_skip_dropout={recipe.stage_skip_dropout!r} must '
        f'be below 1 everywhere, not {high[0]}')
  return tuple(
      Stage(search.Part(f'search/stage-{i + 1}', i),
            recipe._replace(cells=n, skip_dropout=rate), keep)
      for i, (n, rate, keep) in enumerate(zip(cells, rates, (*keeps, None))))


def check(space: Space, method: Method, recipe: SearchRecipe) -> None:
  """Checks the fields that belong to a plan.

  Raises:
    UserError: naming the field, its value and what is allowed.
  """
  leaves.check(space, method, recipe)
  if isinstance(method.plan, Evolve) and recipe.candidates:
    try:
      evolve.check(candidates.options(recipe))
    except errors.UserError as error:
      raise errors.UserError(f'config.search.{error}') from None
  if isinstance(method.plan, Stages):
    most = len(space.not_derived)
    for stage in stages(recipe):
      if stage.keep is not None and stage.keep <= most:
        raise errors.UserError(
            f'config.search.stage_keep={recipe.stage_keep!r} must be above '
            f'{most} everywhere with space={space.name}, which never derives '
            f'{", ".join(space.not_derived)}')


def strongest(space: Space, mask: Mapping[str, np.ndarray], arch: ArchParams,
              keep: int) -> dict[str, np.ndarray]:
  """A mask of the candidates that survive a stage.

  Those of smallest softmax(alpha) go, `none` like any other (`get_min_k`).

  Args:
    space: the whole space.
    mask: {cell type: bool [S,C]}, the candidates of the stage.
    arch: alpha of `space.restrict_to(mask)`.
    keep: how many stay, or all where there are fewer.

  Returns:
    {cell type: bool [S,C]}.
  """
  kept = {}
  for t in space.cell_types:
    kept[t] = np.zeros_like(mask[t])
    for site, row in enumerate(mask[t]):
      places = np.flatnonzero(row)
      order = np.argsort(
          np.asarray(arch.alpha[t])[site, :len(places)], kind='stable')
      kept[t][site, places[order[-keep:]]] = True
  return kept


def largest(setup: Setup, recipe: SearchRecipe,
            ) -> list[tuple[Setup, SearchRecipe, search.Part]]:
  """Every supernet of a plan, before it is known which candidates survive.

  For estimates of time and memory: a stage then has the last candidates of
  each site, which are the convolutions in all spaces of this package.
  """
  if recipe.split_together:  # A leaf has a group of devices.
    setup = setup._replace(mesh=mesh_lib.groups(setup.mesh)[0])
  if not isinstance(setup.method.plan, Stages):
    return [(setup, found, search.ONLY)
            for found in supernets(setup.method, recipe)]
  space, mask, found = setup.space, full_mask(setup.space), []
  for stage in stages(recipe):
    found.append((setup._replace(space=space.restrict_to(mask)), stage.recipe,
                  stage.part))
    if stage.keep is not None:
      mask = {t: row & (np.cumsum(row[:, ::-1], 1)[:, ::-1] <= stage.keep)
              for t, row in mask.items()}
  return found


def _in_stages(setup, recipe, dataset, seed, settings, writer, stop, origin):
  space, mask, done = setup.space, full_mask(setup.space), []
  for stage in stages(recipe):
    figures = None if stage.keep is None else notes.read(
        settings.workdir, stage.part.name)
    if figures is None:
      outcome, genotype = search.run(
          setup._replace(space=space.restrict_to(mask)), stage.recipe, dataset,
          seed, settings, writer, stop, origin, stage.part)
      if not outcome.finished:
        return search.Searched(False, None, outcome.scalars, outcome.figures)
      if stage.keep is None:
        break
      mask = strongest(space, mask, outcome.state.arch, stage.keep)
      figures = notes.write(
          settings.workdir, stage.part.name, outcome.figures | {
              'cells': stage.recipe.cells, 'kept': mask_to_names(space, mask)})
    mask = mask_from_names(space, figures['kept'])
    done.append(figures)
  figures = outcome.figures | {'cells': stage.recipe.cells}
  return search.Searched(True, genotype, outcome.scalars, figures | _together(
      [*done, figures]) | {'phase': stage.part.name, 'stages': done})


def _together(parts):
  """Seconds and images of all parts."""
  return {name: sum(part.get(name, 0) for part in parts)
          for name in ('seconds', 'compile_seconds', 'images')}


# ------------------------------------------- random search, one by one


def jobs(setup: Setup, recipe: SearchRecipe, seed: int) -> list[retrain.Job]:
  """The trainings of a random search."""
  found = candidates.draw(setup.space, recipe.candidates, seed)
  return [retrain.Job(f'candidate-{i:02d}', 'candidate', genotype,
                      (seed + i) % 2**32, 'search')
          for i, genotype in enumerate(found)]


def _random(setup, recipe, retraining, dataset, seed, settings, writer, stop,
            origin):
  runner, done = None, []
  for job in jobs(setup, recipe, seed):
    phase = f'{job.folder}/{job.name}'
    if (figures := notes.read(settings.workdir, phase)) is None:
      runner = runner or candidates.trainer(
          setup, recipe, retraining, dataset, seed, recipe.epochs)
      outcome = runner.run(job, settings, writer, stop)
      if not outcome.finished:
        return search.Searched(False, None, outcome.scalars, outcome.figures)
      figures = notes.write(settings.workdir, phase, outcome.figures | {
          'genotype': genotypes.to_text(job.genotype),
          **{name: outcome.scalars[name] for name in _OF_CANDIDATE}})
    done.append(figures)
  scores = [figures['test_accuracy'] for figures in done]
  best = done[int(np.argmax(scores))]
  genotype = genotypes.from_text(best['genotype'])
  search.save_genotype(
      settings.workdir, setup, seed, best['steps'], genotype, origin)
  # What a candidate is tested on is what others call the validation half.
  scalars = {name.replace('test', 'valid'): best[name]
             for name in _OF_CANDIDATE}
  return search.Searched(True, genotype, scalars, {
      **{name: done[-1].get(name) for name in (
          'steps', 'images_per_second', 'temp_bytes', 'input_wait_share',
          'resumed_at')},
      **_together(done), 'phase': phase, 'candidates': len(done),
      'candidate_accuracy': max(scores),
      'candidate_accuracy_mean': float(np.mean(scores))})


_OF_CANDIDATE = ('train_loss', 'train_accuracy', 'test_loss', 'test_accuracy')
