"""Retraining from scratch: a genotype to a tested network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from rome_jax import data, errors, families
from rome_jax.config import checks
from rome_jax.devices import hosts
from rome_jax.devices import mesh as mesh_lib
from rome_jax.engine import sums
from rome_jax.engine import weights as weights_lib
from rome_jax.spaces import counting, genotypes
from rome_jax.train import loop, memory, optim, search


class Job(NamedTuple):
  """One retraining.

  Attributes:
    name: 'derived-0', say; its phase is 'retrain/<name>'.
    kind: 'derived', 'given' or 'random'.
    genotype: what is trained.
    seed: of weights, data order, augmentation and drop path.
  """

  name: str
  kind: str
  genotype: genotypes.Genotype
  seed: int


class State(NamedTuple):
  """Everything that a step changes, and the seed that it depends on.

  The Optax state `opt` is that of one vector, all of `params` in tree order.
  """

  step: jax.Array
  seed: jax.Array
  params: Any
  batch_stats: Any
  opt: Any


def init_state(variables, tx, seed: int = 0) -> State:
  """The state before the first step, of a network's {collection: tree}."""
  params = variables['params']
  return State(jnp.zeros((), jnp.int32), jnp.uint32(seed), params,
               variables.get('batch_stats', {}),
               tx.init(ravel_pytree(params)[0]))


def jobs(config, genotype) -> list[Job]:
  """The retrainings a config asks for, the architecture's own first."""
  section, seed = config.retrain, config.seed
  kind = 'given' if config.genotype else 'derived'
  found = [Job(f'{kind}-{i}', kind, genotype, (seed + i) % 2**32)
           for i in range(section.seeds)]
  space = checks.space(config)
  for i in range(section.random_architectures):
    rng = np.random.Generator(np.random.Philox(key=[seed, i]))
    found.append(Job(f'random-{i}', 'random', genotypes.random(space, rng),
                     (seed + i) % 2**32))
  return found


def make_network(config, dataset, genotype):
  """The network of the config's `retrain` section, a flax module."""
  section = config.retrain
  space = checks.space(config)
  return families.get(space).network(
      space, genotype, search.sizes(section, dataset),
      search.stem(config, dataset), auxiliary=section.auxiliary,
      remat=section.remat)


def make_step(network, section, tx, steps, steps_per_epoch):
  """(state, batch) -> (state, metrics): one step of DARTS's retraining.

  Args:
    network: the module.
    section: config.retrain.
    tx: Optax transformation.
    steps: of the whole training.
    steps_per_epoch: drop path rises once an epoch, linearly to its end.
  """

  def loss_fn(params, batch_stats, batch, rate, rng):
    drop_rng, noise_rng = jax.random.split(rng)
    outputs, updates = network.apply(
        {'params': params, 'batch_stats': batch_stats},
        batch['image'].astype(section.dtype), train=True, drop_path=rate,
        mutable=['batch_stats'],
        rngs={'drop_path': drop_rng, 'noise': noise_rng})
    logits, auxiliary = outputs if section.auxiliary else (outputs, None)
    loss = _mean_loss(logits, batch, section)
    total = loss
    if section.auxiliary:
      total += section.auxiliary_weight * _mean_loss(auxiliary, batch, section)
    accuracy = optim.correct(logits, batch['label']).mean()
    return total, (loss, accuracy, updates.get('batch_stats', {}))

  def step(state, batch):
    rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
    rate = 0.
    if section.drop_path:
      rate = drop_path_at(section, state.step, steps_per_epoch)

    def part_of(batch_stats, part, fold):
      (_, (loss, accuracy, batch_stats)), grads = jax.value_and_grad(
          loss_fn, has_aux=True)(
              state.params, batch_stats, part, rate, fold(rng))
      return batch_stats, (loss, accuracy, ravel_pytree(grads)[0])

    batch_stats, (loss, accuracy, grads) = sums.mean_over_parts(
        part_of, state.batch_stats, batch, section.accumulate)
    params, unravel = ravel_pytree(state.params)
    updates, opt = tx.update(grads, state.opt, params)
    state = state._replace(
        step=state.step + 1,
        params=unravel(optax.apply_updates(params, updates)),
        batch_stats=batch_stats, opt=opt)
    return state, {'train_loss': loss, 'train_accuracy': accuracy,
                   'grad_norm': optax.tree.norm(grads)}

  return step


def _mean_loss(logits, batch, section):
  return optim.cross_entropy(
      logits, batch['label'], section.label_smoothing).mean()


def drop_path_at(section, step, steps_per_epoch):
  """drop_path * epoch / epochs (DARTS, `train.py`)."""
  return section.drop_path * (step // steps_per_epoch) / section.epochs


def make_test(network, dataset, section, placement=None):
  """state -> {'test_loss', 'test_accuracy'} over the whole test split.

  On a mesh the split is divided over all devices, and so is its reading over
  the processes; batches are filled up to a multiple of the devices.
  """
  size = section.eval_batch_size or section.batch_size
  if placement is not None:
    devices = placement.batch.mesh.size
    size = -(-size // devices) * devices
  batches = data.evaluation_batches(
      dataset.test, size,
      data.make_transform(section.augment, dataset, train=False))
  batches = mesh_lib.sharded(batches, placement and placement.batch, size)

  # Numbers and no keys: every process may pass those.
  def sums(params, batch_stats, batch, seed, step, i):
    # Operations that draw noise (RobustDARTS S4) do so in the test too; what
    # they draw depends on the seed and the step alone.
    rng = jax.random.fold_in(jax.random.key(seed), step)
    # The training step of that number splits its key in two; this is neither.
    rng = jax.random.fold_in(jax.random.fold_in(rng, 2), i)
    logits = network.apply(
        {'params': params, 'batch_stats': batch_stats},
        batch['image'].astype(section.dtype), rngs={'noise': rng})
    mask = batch['mask']
    loss = optim.cross_entropy(logits, batch['label'])
    return (loss * mask).sum(), (
        optim.correct(logits, batch['label']) * mask).sum()

  shardings = {}
  if placement is not None:
    one = placement.carry
    shardings = dict(
        in_shardings=(one, one, placement.batch, one, one, one),
        out_shardings=one)
  compiled = []

  def program(*args):
    if not compiled:
      compiled.append(jax.jit(sums, **shardings).lower(*args).compile())
      hosts.wait_for_all('test compiled')
    return compiled[0](*args)

  def test(state):
    # Floats of the host: added in one order, whatever the device does.
    loss = correct = 0.
    seed, step = np.uint32(state.seed), np.int32(state.step)
    with data.prefetch(batches, 0, len(batches)) as ahead:
      for i, batch in enumerate(ahead):
        a, b = program(state.params, state.batch_stats, batch, seed, step,
                       np.int32(i))
        loss, correct = loss + float(a), correct + float(b)
    count = len(dataset.test.labels)
    return {'test_loss': loss / count, 'test_accuracy': correct / count}

  return test


class Trainer:
  """Compiles each genotype once and trains it with any seed."""

  def __init__(self, config, dataset, mesh=None):
    section = config.retrain
    self.config, self.dataset = config, dataset
    self.devices = mesh.size if mesh else 1
    self.placement = mesh and loop.Placement(
        mesh_lib.replicated(mesh), mesh_lib.split_over_all(mesh))
    self.transform = data.make_transform(
        section.augment, dataset, train=True, cutout=section.cutout)
    self.per_epoch = self._batches(0).steps_per_epoch
    self.steps = section.epochs * self.per_epoch
    if self.steps < 1:
      raise errors.UserError(
          f'config.retrain.epochs={section.epochs} gives no steps; use at '
          'least 1, or config.retrain.seeds=0 to skip the retraining')
    self.schedule = optim.SCHEDULES[section.lr_schedule](
        section.lr, section.lr_end, self.steps, steps_per_epoch=self.per_epoch,
        warmup_steps=section.warmup_epochs * self.per_epoch)
    self.tx = optim.sgd(self.schedule, section)
    self._programs = {}

  def _batches(self, seed):
    return data.Batches(self.dataset.train, None,
                        self.config.retrain.batch_size, seed, self.transform)

  def _placed(self, batches):
    return mesh_lib.sharded(batches, self.placement and self.placement.batch,
                            batches.batch_size)

  def _init(self, network, seed):
    size, channels = self.dataset.image_size, self.dataset.image_channels
    variables = weights_lib.initialise(
        network, seed, jnp.zeros((2, size, size, channels)))
    return init_state(variables, self.tx, seed)

  def _program(self, network, state, label=''):
    """(compiled step, test, carry) of a network."""
    section = self.config.retrain
    step = make_step(network, section, self.tx, self.steps, self.per_epoch)
    batch = self._placed(self._batches(0))(0)
    carry = loop.init_carry(step, state, batch, placement=self.placement)
    # Jobs of one genotype follow each other: older programs are of no use.
    if network not in self._programs:
      self._programs = {network: (
          loop.compile_step(step, carry, batch, label, self.placement),
          make_test(network, self.dataset, section, self.placement))}
    return *self._programs[network], carry

  def run(self, job: Job, workdir, writer, stop) -> loop.Outcome:
    """Trains one job, or goes on with it; see `loop.run`."""
    phase, program, carry = self.prepare(job)
    return loop.run(phase, program, carry,
                    search.settings(self.config, workdir), writer, stop)

  def prepare(self, job: Job):
    """(phase, compiled program, carry), after saying what it will cost.

    Raises:
      UserError: the program needs more memory than there is.
    """
    section = self.config.retrain
    network = make_network(self.config, self.dataset, job.genotype)
    known = network in self._programs
    program, test, carry = self._program(
        network, self._init(network, job.seed), job.name)

    def observe(state, means, memo):
      last = int(state.step) - 1
      return means | {
          'lr': float(self.schedule(last)),
          'drop_path': float(
              drop_path_at(section, last, self.per_epoch))}, memo

    phase = loop.Phase(
        name=f'retrain/{job.name}', steps=self.steps,
        steps_per_epoch=self.per_epoch, images_per_step=section.batch_size,
        batches=self._placed(self._batches(job.seed)), observe=observe,
        test=test, test_every=section.eval_every * self.per_epoch)
    if not known:
      size = memory.Size(
          'retrain', section.batch_size, section.accumulate, section.dtype,
          section.channels, self.dataset.image_size, self.devices,
          remat=section.remat)
      memory.announce(
          f'the retraining {job.name}', phase, program, carry,
          phase.batches(0), size)
    return phase, program, carry


def count(config, dataset, genotype) -> counting.Count:
  """Exact parameters (without the auxiliary head) and multiply-adds."""
  section = config.retrain
  space = checks.space(config)
  return families.get(space).count(
      space, genotype, search.sizes(section, dataset),
      search.stem(config, dataset))
