"""The search driver: a config and a data set to a genotype."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax import data, errors, families, spaces
from rome_jax.config import checks
from rome_jax.devices import hosts
from rome_jax.devices import mesh as mesh_lib
from rome_jax.engine import archs
from rome_jax.engine import weights as weights_lib
from rome_jax.methods import laws, table
from rome_jax.methods import step as step_lib
from rome_jax.spaces import genotypes
from rome_jax.train import loop, memory, optim


class Paired(NamedTuple):
  """Batches of theta and of alpha/beta, step by step."""

  theta: data.Batches
  alpha: data.Batches

  @property
  def split(self):
    """The split both read; tells `data.prefetch` how to read ahead."""
    return self.theta.split

  def __call__(self, step, rows=None):
    return self.theta(step, rows), self.alpha(step, rows)


class Search(NamedTuple):
  """A search ready to run.

  Attributes:
    phase: for `loop.run`.
    update: (state, (batch_theta, batch_alpha)) -> (state, metrics).
    state: before the first step.
    way: how the K samples are evaluated, a name of sums.WAYS.
  """

  phase: loop.Phase
  update: object
  state: step_lib.State
  way: str


def sizes(section, dataset) -> spaces.Sizes:
  """The sizes of the network of a section of the config."""
  return spaces.Sizes(
      section.cells, section.channels, dataset.num_classes,
      dataset.image_size, dataset.image_channels)


def stem(config, dataset) -> str:
  """The config's stem, 'auto' resolved."""
  return families.resolve_stem(
      checks.space(config), config.stem, dataset.image_size)


def make_batches(config, dataset) -> Paired:
  """The two disjoint streams of a search (Algorithm 1: D_t and D_s)."""
  section = config.search
  transform = data.make_transform(
      section.augment, dataset, train=True, cutout=section.cutout)
  parts = data.halves(dataset.train.labels, section.fraction_theta,
                      section.fraction_alpha, config.seed)
  # Two seeds, so that the streams share neither order nor augmentation.
  seeds = np.random.SeedSequence(config.seed).generate_state(2, np.uint64)
  return Paired(*(
      data.Batches(dataset.train, part, section.batch_size, int(seed),
                   transform)
      for part, seed in zip(parts, seeds)))


def num_steps(section, steps_per_epoch) -> int:
  """Steps of the whole search."""
  steps = section.epochs * steps_per_epoch
  return min(steps, section.max_steps) if section.max_steps else steps


def make_loss(network, dtype='float32'):
  """(theta, arch, batch, rng) -> (mean cross entropy, {'accuracy': mean}).

  Args:
    network: a supernet.
    dtype: of the activations, which is that of the images.
  """

  def loss_fn(theta, arch, batch, rng, want_weight_grads=None):
    logits = network.apply(
        {'params': theta}, batch['image'].astype(dtype), arch,
        want_weight_grads, rngs={'noise': rng})
    loss = optim.cross_entropy(logits, batch['label']).mean()
    return loss, {'accuracy': optim.correct(logits, batch['label']).mean()}

  return loss_fn


def make_tau(section, steps, steps_per_epoch):
  """step -> temperature: from tau_start at the first to tau_end at the last.

  Per epoch, tau(e) = start + (end - start) e/(E-1), as in GDAS's code.
  """
  unit = steps_per_epoch if section.tau_per == 'epoch' else 1
  last = max(1, -(-steps // unit) - 1)

  def tau(step):
    return laws.tau_at(
        jnp.minimum((step // unit) / last, 1.), section.tau_start,
        section.tau_end, section.tau_schedule)

  return tau


def choose_samples(section, network, theta, image_size, image_channels,
                    mesh=None) -> str:
  """What `samples='auto'` is on this device; see `memory.samples`.

  Args:
    section: config.search.
    network, theta: the supernet and its weights.
    image_size, image_channels: of the data.
    mesh: of `mesh.make_mesh`; None for one device.
  """
  total = memory.accelerator_bytes()
  if total is None:
    return 'scan'
  space, loss_fn = network.space, make_loss(network, section.dtype)
  arch = {t: archs.first_cell(space, t) for t in space.cell_types}

  def loss(theta, images):
    batch = {'image': images, 'label': jnp.zeros(len(images), jnp.int32)}
    return loss_fn(theta, arch, batch, jax.random.key(0))[0]

  data_parts, groups = mesh_lib.sizes(mesh)
  images = section.batch_size // (section.accumulate * data_parts)
  each = memory.image_bytes(
      loss, theta, (image_size, image_size, image_channels))
  return memory.samples(section.k // groups, images * each, total)


def build(config, dataset, on_checkpoint=None, mesh=None) -> Search:
  """Puts a search together; compiles nothing yet but the initialisation.

  Args:
    config: validated.
    dataset: a `data.Dataset`.
    on_checkpoint: see `loop.Phase`.
    mesh: of `mesh.make_mesh`; None for one device.
  """
  section = config.search
  space = checks.space(config)
  method = table.METHODS[config.method]
  batches = make_batches(config, dataset)
  per_epoch = batches.theta.steps_per_epoch
  steps = num_steps(section, per_epoch)
  if steps < 1:
    raise errors.UserError(
        f'config.search.epochs={section.epochs} gives no steps; use at least '
        '1, or set config.genotype to skip the search')

  network = families.get(space).supernet(
      space, sizes(section, dataset), stem(config, dataset))
  # No step draws from this key: steps fold in their own, smaller number.
  init_rng = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)
  arch = method.init(space, init_rng, section.alpha_init, section.beta_init)
  theta = weights_lib.init_supernet(
      network, config.seed, dataset.image_size, dataset.image_channels)

  way = section.samples
  if way == 'auto':
    way = choose_samples(
        section, network, theta, dataset.image_size, dataset.image_channels,
        mesh)
  schedule = optim.cosine(
      section.lr, section.lr_end, steps,
      steps_per_epoch=per_epoch if section.lr_per == 'epoch' else 1)
  theta_tx = optim.sgd(schedule, section)
  arch_tx = optim.arch_adam(section)
  tau = make_tau(section, steps, per_epoch)
  update = step_lib.make_step(
      method, space, make_loss(network, section.dtype), theta_tx, arch_tx, tau,
      step_lib.Options(
          k=section.k, samples=way,
          accumulate=section.accumulate, sampler=section.sampler,
          order=section.order, theta_reduce=section.theta_reduce,
          alpha_reduce=section.alpha_reduce, clip_norm=section.clip_norm,
          arch_from=section.alpha_start * per_epoch),
      mesh_lib.spread(mesh))

  def observe(state, means, logged):
    # Before the architecture moves, its loss is not computed.
    waits = int(state.step) <= section.alpha_start * per_epoch
    scalars = {k: v for k, v in means.items() if k != 'clipped'
               and not (waits and k.startswith('valid_'))}
    # The rate of the last step done, not of the next.
    scalars |= {
        'clip_rate': means['clipped'],
        'lr': float(schedule(int(state.step) - 1)),
        **_of_genotype(method, space, state.arch, logged),
        **{k: float(v) for k, v in step_lib.diagnostics(
            space, state.arch, state.mask).items()}}
    # A copy: the state's own arrays are donated to the next step.
    return scalars, jax.tree.map(jnp.copy, state.arch)

  phase = loop.Phase(
      name='search', steps=steps, steps_per_epoch=per_epoch,
      # Each update sends a batch through K networks.
      images_per_step=len(method.updates) * section.k * section.batch_size,
      batches=mesh_lib.sharded(
          batches, mesh and mesh_lib.split_batch(mesh), section.batch_size),
      observe=observe, memo=jax.tree.map(jnp.copy, arch),
      on_checkpoint=on_checkpoint)
  state = step_lib.init_state(
      method, space, theta, arch, theta_tx, arch_tx, config.seed)

  def step(state, batch):
    return update(state, {'train': batch[0], 'valid': batch[1]})

  return Search(phase, step, state, way)


def _of_genotype(method, space, arch, logged):
  """What is logged of the derived genotype and of the last one logged."""
  if method.derive is None:
    return {}
  genotype = method.derive(space, arch)
  free = genotypes.parameterless(genotype, space)
  return {
      'genotype_changes': _changes(method.derive(space, logged), genotype),
      **{f'parameterless_{t}': n for t, n in free.items()}}


def _changes(before, after):
  """How many (operation, predecessor) entries of the genotype are new."""
  return sum(
      len(set(new) - set(old))
      for t in genotypes.cell_types(after)
      for old, new in zip(getattr(before, t), getattr(after, t)))


def run(config, dataset, workdir, writer, stop, mesh=None):
  """Searches, or goes on searching, in `workdir`.

  Writes genotype.json at every checkpoint and at the end, once every process
  has derived the same.

  Args:
    config: validated.
    dataset: a `data.Dataset`.
    workdir: folder of the run.
    writer: `metrics.MetricsWriter`.
    stop: see `loop.run`.
    mesh: of `mesh.make_mesh`; None for one device.

  Returns:
    (outcome, genotype).
  """
  workdir = pathlib.Path(workdir)
  space = checks.space(config)
  method = table.METHODS[config.method]

  def save_genotype(step, state):
    genotype = method.derive(space, state.arch)
    hosts.compare(f'genotype at step {step}', genotypes.to_text(genotype))
    if hosts.is_first():
      genotypes.save(
          workdir / 'genotype.json', genotype, space=space.name,
          seed=config.seed, step=step, method=config.method,
          dataset=config.dataset)

  search, program, carry = prepare(config, dataset, mesh, save_genotype)
  outcome = loop.run(
      search.phase, program, carry, settings(config, workdir), writer, stop)
  outcome = outcome._replace(
      figures=outcome.figures | {'samples': search.way})
  return outcome, method.derive(space, outcome.state.arch)


def prepare(config, dataset, mesh=None, on_checkpoint=None):
  """(Search, compiled program, carry), after saying what the run will cost.

  Args:
    config, dataset, mesh, on_checkpoint: as in `build`.

  Raises:
    UserError: the program needs more memory than there is.
  """
  search = build(config, dataset, on_checkpoint, mesh)
  placement = mesh and loop.Placement(
      mesh_lib.replicated(mesh), mesh_lib.split_batch(mesh))
  batch = search.phase.batches(0)
  carry = loop.init_carry(
      search.update, search.state, batch, search.phase.memo, placement)
  program = loop.compile_step(search.update, carry, batch, 'search', placement)
  section = config.search
  size = memory.Size(
      'search', section.batch_size, section.accumulate, section.dtype,
      section.channels, dataset.image_size, *mesh_lib.sizes(mesh), section.k,
      search.way)
  memory.announce(
      'the search', search.phase, program, carry, batch, size)
  return search, program, carry


def settings(config, workdir) -> loop.Settings:
  """The loop's part of a config."""
  return loop.Settings(pathlib.Path(workdir), config.log_every,
                       config.checkpoint_every, config.keep_checkpoints)
