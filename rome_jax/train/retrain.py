"""Retraining from scratch: a genotype to a tested network."""

import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.flatten_util import ravel_pytree

from rome_jax import data, errors
from rome_jax.data import splits
from rome_jax.devices import hosts
from rome_jax.devices import mesh as mesh_lib
from rome_jax.engine import sums
from rome_jax.engine import weights as weights_lib
from rome_jax.spaces import Space, counting, genotypes
from rome_jax.spaces.genotypes import Genotype
from rome_jax.train import checkpoint, loop, memory, notes, optim
from rome_jax.train.recipes import RetrainRecipe
from rome_jax.train.setup import Setup


class Job(NamedTuple):
  """One retraining.

  Attributes:
    name: 'derived-0', say; its phase is '<folder>/<name>'.
    kind: 'derived', 'given', 'random', or 'candidate' of a search.
    genotype: what is trained.
    seed: of weights, data order, augmentation and drop path.
    folder: 'retrain', or 'search' for a candidate.
  """

  name: str
  kind: str
  genotype: genotypes.Genotype
  seed: int
  folder: str = 'retrain'


class State(NamedTuple):
  """Everything that a step changes, and the seed that it depends on.

  The Optax state `opt` is for one vector, all of `params` in tree order. `ema`
  is the mean of (params, batch_stats) over the steps, or ().
  """

  step: jax.Array
  seed: jax.Array
  params: Any
  batch_stats: Any
  opt: Any
  ema: Any = ()

  @property
  def tested(self) -> tuple[Any, Any]:
    """The (params, batch_stats) that count: their mean, where there is one."""
    return self.ema or (self.params, self.batch_stats)


def init_state(variables: Mapping[str, Any], tx: Any, seed: int = 0,
               ema: bool = False) -> State:
  """The state before the first step, of a network's {collection: tree}."""
  params, stats = variables['params'], variables.get('batch_stats', {})
  return State(
      jnp.zeros((), jnp.int32), jnp.uint32(seed), params, stats,
      tx.init(ravel_pytree(params)[0]),
      jax.tree.map(jnp.array, (params, stats)) if ema else ())


def jobs(space: Space, recipe: RetrainRecipe, genotype: Genotype, seed: int,
         kind: str = 'derived') -> list[Job]:
  """The retrainings that a recipe asks for, the architecture's own first.

  Args:
    space: where random architectures are drawn.
    recipe: says how many of both.
    genotype: the architecture.
    seed: of the run; the retrainings take it and those that follow.
    kind: 'derived', or 'given' if nothing was searched.
  """
  found = [Job(f'{kind}-{i}', kind, genotype, (seed + i) % 2**32)
           for i in range(recipe.seeds)]
  for i in range(recipe.random_architectures):
    rng = np.random.Generator(np.random.Philox(key=[seed, i]))
    found.append(Job(f'random-{i}', 'random', genotypes.random(space, rng),
                     (seed + i) % 2**32))
  return found


def held_out(dataset: data.Dataset, share: float) -> data.Dataset:
  """A data set whose test images are a share of its training images.

  The share is of each class, at least one image where there are two, and the
  same in every run; the others are trained on. The test images are not
  touched, so searches may be compared by it.

  Raises:
    UserError: no class has two images.
  """
  train, test = splits.stratified(dataset.train.labels, share, 0)
  return dataset._replace(
      train=splits.take(dataset.train, train),
      test=splits.take(dataset.train, test))


class Start(NamedTuple):
  """A trained network that others go on from.

  Attributes:
    genotype: of its cells.
    variables: {collection: tree}.
    name: where it is from.
  """

  genotype: Genotype
  variables: Mapping[str, Any]
  name: str


def read_start(workdir: str) -> Start:
  """The most accurate network of a finished run, to go on from.

  Raises:
    UserError: the folder has none.
  """
  path = pathlib.Path(os.path.expanduser(workdir))
  if not (path / 'result.json').exists():
    raise errors.UserError(
        f'config.retrain.init_from={workdir} must be the folder of a finished '
        'run')
  figures = notes.retraining(path)
  return Start(
      genotypes.from_text(figures['genotype']),
      read_variables(path, figures['name']), f'{workdir}, {figures["name"]}')


def read_variables(workdir: pathlib.Path, name: str,
                   best: bool = False) -> dict[str, Any]:
  """{collection: tree} of a retraining's newest checkpoint.

  Args:
    workdir: folder of the run.
    name: of the retraining; of its weights the mean, if it kept one.
    best: those of its most accurate test instead.

  Raises:
    UserError: there are none, or they are damaged.
  """
  if best:
    state = checkpoint.read_tree(best_folder(workdir, name), 'variables')
    return {name: state.get(name, {}) for name in ('params', 'batch_stats')}
  state = checkpoint.read_tree(
      workdir / 'checkpoints' / 'retrain' / name, 'state')
  if mean := state.get('ema'):  # `read_tree` gives tuples as {'0': ...}.
    return {'params': mean['0'], 'batch_stats': mean.get('1', {})}
  return {name: state.get(name, {}) for name in ('params', 'batch_stats')}


def started(variables: Mapping[str, Any], start: Start,
            genotype: Genotype) -> dict[str, Any]:
  """Initial variables with those of another training in their place.

  Classifiers for another number of classes and an auxiliary head that the
  other lacks begin anew.

  Args:
    variables: fresh, of the network.
    start: the other training.
    genotype: of the network.

  Raises:
    UserError: the other network is not the same but for its classifiers.
  """
  if start.genotype != genotype:
    raise errors.UserError(
        f'{start.name}, of config.retrain.init_from, has another genotype: '
        f'{genotypes.to_text(start.genotype)}')
  known = traverse_util.flatten_dict(dict(start.variables))
  fresh = traverse_util.flatten_dict(dict(variables))
  found = {}
  for path in {**fresh, **known}:
    here, there = (None if leaf is None else list(np.shape(leaf))
                   for leaf in (fresh.get(path), known.get(path)))
    if here == there:
      found[path] = np.asarray(known[path])
    elif 'auxiliary' in path or 'head' in path:
      if here is not None:
        found[path] = fresh[path]
    else:
      raise errors.UserError(
          f'{start.name}, of config.retrain.init_from, is another network: '
          f'{"/".join(path)} has the shape {there} there and {here} here; give '
          'its cells and channels')
  return traverse_util.unflatten_dict(found)


def make_network(setup: Setup, recipe: RetrainRecipe,
                 genotype: Genotype) -> nn.Module:
  """The network of a genotype."""
  return setup.family.network(
      setup.space, genotype, setup.sizes_of(recipe), setup.stem,
      auxiliary=recipe.auxiliary, auxiliary_norm=recipe.auxiliary_norm,
      remat=recipe.remat)


def make_step(network: nn.Module, recipe: RetrainRecipe, tx: Any, steps: int,
              steps_per_epoch: int) -> Callable[..., Any]:
  """(state, batch) -> (state, metrics): one step of DARTS's retraining.

  Args:
    network: the module.
    recipe: of the retraining.
    tx: Optax transformation.
    steps: of the whole training.
    steps_per_epoch: drop path rises once an epoch, linearly to its end.
  """

  def loss_fn(params, batch_stats, batch, rate, rng):
    drop_rng, noise_rng = jax.random.split(rng)
    outputs, updates = network.apply(
        {'params': params, 'batch_stats': batch_stats},
        batch['image'].astype(recipe.dtype), train=True, drop_path=rate,
        mutable=['batch_stats'],
        rngs={'drop_path': drop_rng, 'noise': noise_rng})
    logits, auxiliary = outputs if recipe.auxiliary else (outputs, None)
    loss = _mean_loss(logits, batch, recipe)
    total = loss
    if recipe.auxiliary:
      total += recipe.auxiliary_weight * _mean_loss(auxiliary, batch, recipe)
    accuracy = optim.correct(logits, batch['label']).mean()
    return total, (loss, accuracy, updates.get('batch_stats', {}))

  def step(state, batch):
    rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
    rate = 0.
    if recipe.drop_path:
      rate = drop_path_at(recipe, state.step, steps_per_epoch)

    def part_of(batch_stats, part, fold):
      (_, (loss, accuracy, batch_stats)), grads = jax.value_and_grad(
          loss_fn, has_aux=True)(
              state.params, batch_stats, part, rate, fold(rng))
      return batch_stats, (loss, accuracy, ravel_pytree(grads)[0])

    batch_stats, (loss, accuracy, grads) = sums.mean_over_parts(
        part_of, state.batch_stats, batch, recipe.accumulate)
    params, unravel = ravel_pytree(state.params)
    updates, opt = tx.update(grads, state.opt, params)
    state = state._replace(
        step=state.step + 1,
        params=unravel(optax.apply_updates(params, updates)),
        batch_stats=batch_stats, opt=opt)
    if recipe.ema:
      decay = ema_decay(recipe.ema, state.step - 1)
      state = state._replace(ema=jax.tree.map(
          lambda mean, new: decay * mean + (1 - decay) * new,
          state.ema, (state.params, state.batch_stats)))
    return state, {'train_loss': loss, 'train_accuracy': accuracy,
                   'grad_norm': optax.tree.norm(grads)}

  return step


def ema_decay(decay: float, steps: Any) -> Any:
  """The decay after so many steps: less at first, min(d, (1+t) / (10+t)).

  So the mean of a short training is not that of its first weights.

  >>> float(ema_decay(.9, 0)), round(float(ema_decay(.999, 90)), 2)
  (0.10000000149011612, 0.91)
  """
  return jnp.minimum(decay, (1. + steps) / (10. + steps))


def _mean_loss(logits, batch, recipe):
  return optim.cross_entropy(
      logits, batch['label'], recipe.label_smoothing).mean()


def drop_path_at(recipe: RetrainRecipe, step: Any, steps_per_epoch: int) -> Any:
  """drop_path * epoch / epochs (DARTS, `train.py`)."""
  return recipe.drop_path * (step // steps_per_epoch) / recipe.epochs


class Test:
  """state -> {'test_loss', 'test_accuracy'} over the whole test split.

  On a mesh the split is divided over all devices, and so is its reading over
  the processes; batches are filled up to a multiple of the devices.

  Attributes:
    seconds: of all its calls so far, without compiling.
    compile_seconds: of the first call.
  """

  def __init__(self, network: nn.Module, dataset: data.Dataset,
               recipe: RetrainRecipe, placement: loop.Placement | None = None):
    """Compiles nothing yet."""
    self.seconds = self.compile_seconds = 0.
    self._count = len(dataset.test.labels)
    self._batches = _test_batches(dataset, recipe, placement)
    self._sums = _make_sums(network, recipe)
    self._placement = placement
    self._compiled = None

  def __call__(self, state: State) -> dict[str, float]:
    began, compiling = time.perf_counter(), self.compile_seconds
    # Floats of the host: added in one order, whatever the device does.
    loss = correct = 0.
    seed, step = np.uint32(state.seed), np.int32(state.step)
    params, batch_stats = state.tested
    with data.prefetch(self._batches, 0, len(self._batches)) as ahead:
      for i, batch in enumerate(ahead):
        a, b = self._program(params, batch_stats, batch, seed, step,
                             np.int32(i))
        loss, correct = loss + float(a), correct + float(b)
    compiled = self.compile_seconds - compiling
    self.seconds += time.perf_counter() - began - compiled
    return {'test_loss': loss / self._count,
            'test_accuracy': correct / self._count}

  def _program(self, *args):
    if self._compiled is None:
      began = time.perf_counter()
      shardings = {}
      if self._placement is not None:
        one = self._placement.carry
        shardings = dict(
            in_shardings=(one, one, self._placement.batch, one, one, one),
            out_shardings=one)
      self._compiled = jax.jit(
          self._sums, **shardings).lower(*args).compile()
      hosts.wait_for_all('test compiled')
      self.compile_seconds = time.perf_counter() - began
    return self._compiled(*args)


def best_folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """Where the best weights of a retraining are kept."""
  return workdir / 'checkpoints' / 'best' / name


class Best:
  """Keeps the weights of the most accurate test of a retraining.

  They are checkpoints of their own, numbered in the order of writing. A
  retraining that was set back comes to the same tests again, and writes the
  same weights once.

  Attributes:
    figures: 'best_test_accuracy', 'best_test_loss' and 'best_step'; {} before
      the first test.
  """

  def __init__(self, folder: pathlib.Path, fresh: bool):
    """Reads what an earlier start has kept.

    Args:
      folder: of `best_folder`.
      fresh: whether the retraining begins anew, so that nothing counts.

    Raises:
      UserError: what was kept is damaged.
    """
    self._folder = folder
    self.figures = hosts.from_first(lambda: _kept(folder, fresh))

  def __call__(self, state: State, tested: Mapping[str, float]) -> None:
    if tested['test_accuracy'] <= self.figures.get('best_test_accuracy', -1.):
      return
    self.figures = {'best_test_accuracy': tested['test_accuracy'],
                    'best_test_loss': tested['test_loss'],
                    'best_step': int(state.step)}
    hosts.from_first(lambda: self._write(state))

  def _write(self, state):
    params, batch_stats = state.tested
    with checkpoint.Checkpoints(self._folder, keep=1) as store:
      # Only the newest is kept; its step may be below that of an earlier one.
      store.save(max(store.steps(), default=-1) + 1, {
          'variables': {'params': params, 'batch_stats': batch_stats},
          'figures': {name: np.float64(value)
                      for name, value in self.figures.items()}})


def _kept(folder, fresh):
  """The figures of `Best`."""
  if fresh and folder.exists():
    shutil.rmtree(folder)
  with checkpoint.Checkpoints(folder) as store:
    if not store.steps():
      return {}
  try:
    found = checkpoint.read_tree(folder, 'figures')
  except errors.UserError as error:
    raise errors.UserError(
        f'{error}; put a backup there, or delete {folder} to keep the best of '
        'the tests that follow') from error
  return {name: int(value) if name == 'best_step' else float(value)
          for name, value in found.items()}


def _test_batches(dataset, recipe, placement):
  size = recipe.eval_batch_size or recipe.batch_size
  if placement is not None:
    devices = placement.batch.mesh.size
    size = -(-size // devices) * devices
  batches = data.evaluation_batches(
      dataset.test, size,
      data.make_transform(recipe.augment, dataset, train=False))
  return mesh_lib.sharded(batches, placement and placement.batch, size)


def _make_sums(network, recipe):
  """(params, ..., batch, ...) -> (summed loss, number of correct images)."""

  # Numbers and no keys: every process may pass those.
  def sums(params, batch_stats, batch, seed, step, i):
    # Operations that draw noise (RobustDARTS S4) do so in the test too; what
    # they draw depends on the seed and the step alone.
    rng = jax.random.fold_in(jax.random.key(seed), step)
    # The training step of that number splits its key in two; this is neither.
    rng = jax.random.fold_in(jax.random.fold_in(rng, 2), i)
    logits = network.apply(
        {'params': params, 'batch_stats': batch_stats},
        batch['image'].astype(recipe.dtype), rngs={'noise': rng})
    mask = batch['mask']
    loss = optim.cross_entropy(logits, batch['label'])
    return (loss * mask).sum(), (
        optim.correct(logits, batch['label']) * mask).sum()

  return sums


class Trainer:
  """Compiles each genotype once and trains it with any seed."""

  def __init__(self, setup: Setup, recipe: RetrainRecipe,
               dataset: data.Dataset):
    """Compiles nothing yet.

    Raises:
      UserError: there are no steps, or fewer images than a batch has.
    """
    if recipe.holdout:
      dataset = held_out(dataset, recipe.holdout)
    self.setup, self.recipe, self.dataset = setup, recipe, dataset
    mesh = setup.mesh
    self.devices = mesh.size if mesh else 1
    self.placement = mesh and loop.Placement(
        mesh_lib.replicated(mesh), mesh_lib.split_over_all(mesh))
    self.transform = data.make_transform(
        recipe.augment, dataset, train=True, cutout=recipe.cutout,
        field='config.retrain.cutout', rand_augment=recipe.rand_augment,
        rand_magnitude=recipe.rand_magnitude)
    self.per_epoch = self.batches(0).steps_per_epoch
    self.steps = loop.checked_steps(
        recipe.epochs * self.per_epoch,
        f'config.retrain.epochs={recipe.epochs}',
        'or config.retrain.seeds=0 to skip the retraining')
    self.schedule = optim.SCHEDULES[recipe.lr_schedule](
        recipe.lr, recipe.lr_end, self.steps, steps_per_epoch=self.per_epoch,
        warmup_steps=recipe.warmup_epochs * self.per_epoch)
    self.tx = optim.sgd(self.schedule, recipe)
    self._start: Start | None = None
    self._programs: dict[nn.Module, Any] = {}

  def batches(self, seed: int) -> data.Batches:
    """Batches of the training images in the order of a seed."""
    return data.Batches(self.dataset.train, None, self.recipe.batch_size, seed,
                        self.transform)

  def _placed(self, batches):
    return mesh_lib.sharded(batches, self.placement and self.placement.batch,
                            batches.batch_size)

  def _init(self, network, seed, genotype, resumes):
    size, channels = self.dataset.image_size, self.dataset.image_channels
    variables = weights_lib.initialise(
        network, seed, jnp.zeros((2, size, size, channels)))
    if self.recipe.init_from and not resumes:
      self._start = self._start or read_start(self.recipe.init_from)
      variables = started(variables, self._start, genotype)
    return init_state(variables, self.tx, seed, bool(self.recipe.ema))

  def _program(self, network, state, label=''):
    """(compiled step, test, carry) of a network."""
    recipe = self.recipe
    step = make_step(network, recipe, self.tx, self.steps, self.per_epoch)
    batch = self._placed(self.batches(0))(0)
    carry = loop.init_carry(step, state, batch, placement=self.placement)
    if network in self._programs:
      program, test = self._programs[network]
      # What was compiled for an earlier job costs this one nothing.
      return program._replace(compile_seconds=0.), test, carry
    program = loop.compile_step(step, carry, batch, label, self.placement)
    test = Test(network, self.dataset, recipe, self.placement)
    # Jobs of one genotype follow each other: older programs are of no use.
    self._programs = {network: (program, test)}
    return program, test, carry

  def run(self, job: Job, settings: loop.Settings, writer: Any, stop: Any,
          epochs: int | None = None) -> loop.Outcome:
    """Trains one job, or continues it; see `loop.run`.

    Args:
      job, settings, writer, stop: see `loop.run`.
      epochs: after which it pauses, its schedules being those of the whole;
        None: its last.

    Returns:
      The outcome; its figures also have test_seconds (without compiling) and
      test_compile_seconds, both of this process and part of `seconds`.
    """
    folder = settings.workdir / 'checkpoints' / job.folder / job.name
    phase, program, carry = self.prepare(job, folder.exists())
    if epochs is not None:
      phase = phase._replace(steps=min(self.steps, epochs * self.per_epoch))
    test: Any = phase.test  # a `Test`
    before = test.seconds, test.compile_seconds
    best = None
    if self.recipe.keep_best and job.folder == 'retrain':
      best = Best(best_folder(settings.workdir, job.name),
                  fresh=not folder.exists())
      phase = phase._replace(on_test=best)
    outcome = loop.run(phase, program, carry, settings, writer, stop)
    return outcome._replace(figures=outcome.figures | {
        **({'init_from': self._start.name} if self._start else {}),
        **(best.figures if best else {}),
        'test_seconds': test.seconds - before[0],
        'test_compile_seconds': test.compile_seconds - before[1]})

  def prepare(self, job: Job, resumes: bool = False,
              ) -> tuple[loop.Phase, loop.Program, loop.Carry]:
    """(phase, compiled program, carry), after saying what it will cost.

    Args:
      job: what is trained.
      resumes: whether a checkpoint will replace the first weights.

    Raises:
      UserError: the program needs more memory than there is.
    """
    recipe = self.recipe
    network = make_network(self.setup, recipe, job.genotype)
    known = network in self._programs
    program, test, carry = self._program(
        network, self._init(network, job.seed, job.genotype, resumes),
        job.name)

    def observe(state, means, memo):
      last = int(state.step) - 1
      return means | {
          'lr': float(self.schedule(last)),
          'drop_path': float(
              drop_path_at(recipe, last, self.per_epoch))}, memo

    phase = loop.Phase(
        name=f'{job.folder}/{job.name}', steps=self.steps,
        steps_per_epoch=self.per_epoch, images_per_step=recipe.batch_size,
        batches=self._placed(self.batches(job.seed)), observe=observe,
        test=test, test_every=recipe.eval_every * self.per_epoch)
    if not known:
      size = memory.Size(
          'retrain', recipe.batch_size, recipe.accumulate, recipe.dtype,
          recipe.channels, self.dataset.image_size, self.devices,
          remat=recipe.remat)
      memory.announce(
          f'the retraining {job.name}', phase, program, carry,
          phase.batches(0), size)
    return phase, program, carry


def count(setup: Setup, recipe: RetrainRecipe,
          genotype: Genotype) -> counting.Count:
  """Exact parameters (without the auxiliary head) and multiply-adds."""
  return setup.family.count(
      setup.space, genotype, setup.sizes_of(recipe), setup.stem)
