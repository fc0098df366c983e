"""The search driver: a setup, a recipe and a data set to a genotype."""

import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from rome_jax import data, errors
from rome_jax.data import augment
from rome_jax.devices import hosts
from rome_jax.devices import mesh as mesh_lib
from rome_jax.engine import archs, drop
from rome_jax.engine import weights as weights_lib
from rome_jax.families import table
from rome_jax.methods import laws
from rome_jax.methods import step as step_lib
from rome_jax.methods.method import Mask, Method, State
from rome_jax.spaces import Space, genotypes
from rome_jax.spaces.genotypes import Genotype
from rome_jax.tables import benchmarks
from rome_jax.train import (
    diagnostics,
    loop,
    memory,
    metrics,
    optim,
)
from rome_jax.train.recipes import SearchRecipe
from rome_jax.train.setup import Setup


class Halves(NamedTuple):
  """Batches of the two halves of the training images, step by step.

  Attributes:
    train: for theta.
    valid: for alpha and beta.
    names: which of the two a step reads.
  """

  train: data.Batches
  valid: data.Batches
  names: tuple[str, ...] = ('train', 'valid')

  @property
  def split(self) -> Any:
    """The split both read; tells `data.prefetch` how to read ahead."""
    return self.train.split

  def weighted(self, weights: np.ndarray) -> 'Halves':
    """The same batches, those for theta drawn by other weights."""
    return self._replace(train=self.train.weighted(weights))

  def __call__(self, step, rows=None):
    return {name: getattr(self, name)(step, rows) for name in self.names}


class Part(NamedTuple):
  """Which search of a run this is, where a plan has several.

  Attributes:
    name: of its phase.
    number: 0 for the first, whose random numbers are those of a single
      search. The others have their own; all divide the images alike.
  """

  name: str = 'search'
  number: int = 0

  def seed_of(self, seed: int) -> int:
    """The seed of everything but the halves, of the run's seed."""
    if not self.number:
      return seed
    return int(np.random.SeedSequence([seed, self.number]).generate_state(1)[0])


ONLY = Part()


class Searched(NamedTuple):
  """What a plan gives.

  Attributes:
    finished: False if a signal ended it early (its state is saved).
    genotype: None if it was stopped before there was one.
    scalars: last metrics, of the genotype's own part.
    figures: of all its parts together; `phase` names the last of them.
  """

  finished: bool
  genotype: Genotype | None
  scalars: Mapping[str, Any]
  figures: dict[str, Any]


class Search(NamedTuple):
  """A search ready to run.

  Attributes:
    phase: for `loop.run`.
    update: (state, {'train': batch, 'valid': batch}) -> (state, metrics).
    state: before the first step.
    way: how the K samples are evaluated, a name of sums.WAYS.
    boundary: (state, batches) -> state at the end of an epoch, or None; not
      compiled.
  """

  phase: loop.Phase
  update: Callable[..., Any]
  state: State
  way: str
  boundary: Callable[..., Any] | None = None


def make_halves(setup: Setup, recipe: SearchRecipe, dataset: data.Dataset,
                seed: int, part: Part = ONLY) -> Halves:
  """The two disjoint streams of a search (Algorithm 1: D_t and D_s).

  Args:
    setup, recipe, dataset, seed, part: as in `build`.

  Raises:
    UserError: a half has too few images for its fraction or batch.
  """
  transform = data.make_transform(
      recipe.augment, dataset, train=True,
      cutout=0 if recipe.cutout_ramp else recipe.cutout,
      field='config.search.cutout')
  parts = data.halves(dataset.train.labels, recipe.fraction_theta,
                      recipe.fraction_alpha, seed)
  # Two seeds, so that the streams share neither order nor augmentation.
  seeds = np.random.SeedSequence(part.seed_of(seed)).generate_state(
      2, np.uint64)
  make = _batches(recipe, dataset, len(parts[0]) // recipe.batch_size)
  train, valid = (
      make(dataset.train, half, recipe.batch_size, int(own), transform)
      for half, own in zip(parts, seeds))
  if setup.method.extra.draw is not None:
    train = train.weighted(np.ones(len(train.indices)))
  read = {update.batch for update in setup.method.updates}
  return Halves(train, valid, tuple(sorted(read)))


def _batches(recipe, dataset, steps_per_epoch):
  """What makes the batches of a half."""
  if not (recipe.cutout_ramp and steps_per_epoch):
    return data.Batches
  last = -(-num_steps(recipe, steps_per_epoch) // steps_per_epoch) - 1
  return functools.partial(
      data.RampedBatches,
      side=augment.cutout_side(
          recipe.cutout, dataset.image_size, 'config.search.cutout'),
      chance=lambda step: step // steps_per_epoch / max(1, last))


def num_steps(recipe: SearchRecipe, steps_per_epoch: int) -> int:
  """Steps of the whole search.

  Raises:
    UserError: none, or more than 32 bits can count.
  """
  steps = recipe.epochs * steps_per_epoch
  if recipe.max_steps:
    steps = min(steps, recipe.max_steps)
  return loop.checked_steps(
      steps, f'config.search.epochs={recipe.epochs}',
      'or set config.genotype to skip the search')


def make_loss(network: nn.Module, dtype: str = 'float32',
              drop_at: Callable[[Any], drop.Drop] | None = None,
              batch_size: int = 0, unbiased: bool = False,
              ) -> Callable[..., Any]:
  """(theta, arch, batch, rng) -> (mean cross entropy, {'accuracy': mean}).

  Where images are drawn by weight the metrics have `scores`, ||softmax -
  onehot|| of each image of the whole batch, [B] (PA&DA).

  Args:
    network: a supernet.
    dtype: of the activations, which is that of the images.
    drop_at: step -> what is left out at random; see `make_drop`.
    batch_size: B, where images are drawn by weight.
    unbiased: whether the loss of an image counts 1 / (n p), p the probability
      of its draw, so that the mean over draws is that over all images.
  """

  def loss_fn(theta, arch, batch, rng, want_weight_grads=None, step=None):
    dropped = {'drop': drop_at(step)} if drop_at else {}
    logits = network.apply(
        {'params': theta}, batch['image'].astype(dtype), arch,
        want_weight_grads, rngs={'noise': rng}, **dropped)
    losses = optim.cross_entropy(logits, batch['label'])
    if unbiased:
      losses = losses * batch['weight']
    metrics = {'accuracy': optim.correct(logits, batch['label']).mean()}
    if 'row' in batch:
      metrics['scores'] = _scores(logits, batch, batch_size)
    return losses.mean(), metrics

  return loss_fn


def _scores(logits, batch, batch_size):
  """[B], those of a part of the batch in their places, the others 0.

  So large that their mean over equal parts is the scores of all.
  """
  onehot = jax.nn.one_hot(batch['label'], logits.shape[-1])
  error = jax.nn.softmax(lax.stop_gradient(logits)) - onehot
  parts = batch_size // len(logits)
  return jnp.zeros(batch_size).at[batch['row']].set(
      parts * jnp.sqrt(jnp.square(error).sum(-1)))


def make_drop(recipe: SearchRecipe, steps: int, steps_per_epoch: int,
              ) -> Callable[[Any], drop.Drop] | None:
  """step -> rates of what a supernet leaves out; None if it leaves out nothing.

  Both change once an epoch e of E. Drop path is drop_path * e/(E-1)
  (RobustDARTS, `train_search.py`). Dropout on identities is skip_dropout *
  (E-e-1)/E until alpha moves in epoch s, and skip_dropout * exp(-.2 (e-s))
  from then on (P-DARTS, `train_search.py`).
  """
  if not (recipe.drop_path or recipe.skip_dropout):
    return None
  epochs = -(-steps // steps_per_epoch)

  def rates(step):
    epoch, path, skip = step // steps_per_epoch, None, None
    if recipe.drop_path:
      path = recipe.drop_path * epoch / max(1, epochs - 1)
    if recipe.skip_dropout:
      moves = epoch - recipe.alpha_start
      skip = recipe.skip_dropout * jnp.where(
          moves < 0, (epochs - epoch - 1) / epochs, jnp.exp(-.2 * moves))
    return drop.Drop(path, skip)

  return rates


def make_tau(recipe: SearchRecipe, steps: int,
             steps_per_epoch: int) -> Callable[[Any], jax.Array]:
  """step -> temperature: from tau_start at the first to tau_end at the last.

  Per epoch, tau(e) = start + (end - start) e/(E-1), as in GDAS's code.
  """
  unit = steps_per_epoch if recipe.tau_per == 'epoch' else 1
  last = max(1, -(-steps // unit) - 1)

  def tau(step):
    return laws.tau_at(
        jnp.minimum((step // unit) / last, 1.), recipe.tau_start,
        recipe.tau_end, recipe.tau_schedule)

  return tau


def choose_samples(recipe: SearchRecipe, network: nn.Module, theta: Any,
                   image_size: int, image_channels: int,
                   mesh: Mesh | None = None) -> str:
  """What `samples='auto'` is on this device; see `memory.samples`.

  Args:
    recipe: of the search.
    network, theta: the supernet and its weights.
    image_size, image_channels: of the data.
    mesh: of `mesh.make_mesh`; None for one device.
  """
  total = memory.accelerator_bytes()
  if total is None:
    return 'scan'
  space, loss_fn = network.space, make_loss(network, recipe.dtype)
  arch = {t: archs.first_cell(space, t) for t in space.cell_types}

  def loss(theta, images):
    batch = {'image': images, 'label': jnp.zeros(len(images), jnp.int32)}
    return loss_fn(theta, arch, batch, jax.random.key(0))[0]

  data_parts, groups = mesh_lib.sizes(mesh)
  images = recipe.batch_size // (recipe.accumulate * data_parts)
  each = memory.image_bytes(
      loss, theta, (image_size, image_size, image_channels))
  return memory.samples(recipe.k // groups, images * each, total)


def choose_evaluator(space: Space, method: Method, asked: str = 'auto') -> str:
  """How a search evaluates slots: `asked`, or what 'auto' stands for.

  That is 'batched' if the method lists every operation of every edge and the
  family can. It needs as little memory as 'listed', so the device does not
  matter, and a resumed run makes the same choice.

  Raises:
    UserError: the family of the space has not what is asked for.
  """
  if asked != 'auto':
    table.check_evaluator(space, asked, 'config.search')
    return asked
  known = table.get(space).evaluators
  every = 'batched' in known and lists_every_slot(method, space)
  return 'batched' if every else 'listed'


def lists_every_slot(method: Method, space: Space) -> bool:
  """Whether a method evaluates all candidates of every site: a mixture."""

  def sample(key):
    arch = method.init(space, key)
    noise = method.noise(space, arch, key, 1)
    return method.sample(space, arch, jax.tree.map(lambda a: a[0], noise), 1.)

  cells = jax.eval_shape(sample, jax.random.key(0))
  return all(len(cell.ops) == (space.choices(t) >= 0).sum()
             for t, cell in cells.items())


def make_supernet(setup: Setup, recipe: SearchRecipe,
                  evaluator: str = 'listed') -> nn.Module:
  """The supernet of a setup."""
  options: dict[str, Any] = {}
  if setup.method.partial > 1:  # Not every family has partial channels.
    options['partial'] = setup.method.partial
  if evaluator != 'listed':
    options['evaluator'] = evaluator
  return setup.family.supernet(
      setup.space, setup.sizes_of(recipe), setup.stem, **options)


def build(setup: Setup, recipe: SearchRecipe, dataset: data.Dataset,
          seed: int, part: Part = ONLY,
          lines: Callable[[], Iterable[Mapping]] = tuple,
          mask: Mask | tuple = ()) -> Search:
  """Puts a search together; compiles nothing yet but the initialisation.

  Args:
    setup: what is searched, how, and where.
    recipe: the numbers of the search.
    dataset: the images.
    seed: every random number follows from it.
    part: which search of a run it is.
    lines: () -> rows of metrics.jsonl that this search goes on from.
    mask: see `State`.

  Raises:
    UserError: there are no steps, or too few images.
  """
  space, method, mesh = setup.space, setup.method, setup.mesh
  batches = make_halves(setup, recipe, dataset, seed, part)
  seed = part.seed_of(seed)
  per_epoch = batches.train.steps_per_epoch
  steps = num_steps(recipe, per_epoch)
  _check_start(method, recipe, steps, per_epoch)
  network = make_supernet(
      setup, recipe, choose_evaluator(space, method, recipe.evaluator))
  # No step draws from this key: steps fold in their own, smaller number.
  init_rng = jax.random.fold_in(jax.random.key(seed), 2**32 - 1)
  arch = method.init(space, init_rng, recipe.alpha_init, recipe.beta_init)
  size, channels = setup.sizes.image_size, setup.sizes.image_channels
  theta = weights_lib.init_supernet(network, seed, size, channels)

  way = recipe.samples
  if way == 'auto':
    way = choose_samples(recipe, network, theta, size, channels, mesh)
  schedule = optim.cosine(
      recipe.lr, recipe.lr_end, steps,
      steps_per_epoch=per_epoch if recipe.lr_per == 'epoch' else 1)
  theta_tx = optim.sgd(schedule, recipe, method.extra.hyperparameters)
  arch_tx = optim.arch_adam(recipe)
  tau = make_tau(recipe, steps, per_epoch)
  options = _options(recipe, way, steps, per_epoch)
  parts: tuple[Any, ...] = (
      method, space,
      make_loss(network, recipe.dtype, make_drop(recipe, steps, per_epoch),
                recipe.batch_size, recipe.unbiased),
      theta_tx, arch_tx, tau, options, mesh_lib.spread(mesh))
  make_step = functools.partial(
      step_lib.make_step,
      candidates=lambda theta: setup.family.candidates(theta, space))
  update = make_step(*parts)

  placed = mesh_lib.sharded(
      batches, mesh_lib.split_batch(mesh) if mesh else None,
      recipe.batch_size)
  test, test_every = diagnostics.make_test(
      setup, recipe, network, batches.valid, dataset, tau,
      diagnostics.make_eigenvalue(parts, mesh) if recipe.eigenvalue_every
      else None, placed, steps, per_epoch)
  phase = loop.Phase(
      name=part.name, steps=steps, steps_per_epoch=per_epoch,
      # Each update sends a batch through K networks.
      images_per_step=len(method.updates) * recipe.k * recipe.batch_size,
      batches=placed, test=test, test_every=test_every,
      observe=_observer(
          setup, dataset.name, schedule, options.arch_from, per_epoch,
          diagnostics.Watch(space, part.name, steps / per_epoch, lines)),
      # No mean of the validation half spans steps that leave it out.
      line_at=options.arch_from,
      memo=jax.tree.map(jnp.copy, arch),
      stop=_of_extra(method.extra.stop), draw=_of_extra(method.extra.draw))
  state = step_lib.init_state(
      method, space, theta, arch, theta_tx, arch_tx, seed, mask,
      num_examples=len(batches.train.indices))
  return Search(phase, update, state, way, method.extra.boundary and (
      step_lib.make_boundary(*parts)))


def _of_extra(function):
  """What asks a method's own state, as a function of the whole; or None."""
  return function and (lambda state: function(state.extra))


def _check_start(method, recipe, steps, per_epoch):
  """Refuses a search that ends before its architecture moves."""
  first = recipe.alpha_start * per_epoch
  moves = any(update.params != 'theta' for update in method.updates)
  if moves and first >= steps:
    raise errors.UserError(
        f'config.search.alpha_start={recipe.alpha_start} epochs are '
        f'{first:,} steps; they must be fewer than the {steps:,} of the '
        'search, or alpha never moves')


def _options(recipe, way, steps, steps_per_epoch):
  return step_lib.Options(
      k=recipe.k, samples=way, accumulate=recipe.accumulate,
      sampler=recipe.sampler, order=recipe.order,
      theta_reduce=recipe.theta_reduce, alpha_reduce=recipe.alpha_reduce,
      clip_norm=recipe.clip_norm,
      arch_from=recipe.alpha_start * steps_per_epoch,
      steps=steps, steps_per_epoch=steps_per_epoch,
      alpha_decay=recipe.alpha_weight_decay)


def _observer(setup, dataset, schedule, arch_from, per_epoch, watch):
  """(state, means, architecture logged last) -> (scalars, architecture)."""

  def observe(state, means, logged):
    # Before the architecture moves, its loss is not computed.
    waits = int(state.step) <= arch_from
    scalars = {k: v for k, v in means.items() if k != 'clipped'
               and not (waits and k.startswith('valid_'))}
    # The rate of the last step done, not of the next.
    scalars |= {
        'clip_rate': means['clipped'],
        'lr': float(schedule(int(state.step) - 1)),
        **_of_genotype(setup, dataset, state, logged, per_epoch, watch),
        **_reported(setup.method, state, per_epoch),
        **{k: float(v) for k, v in step_lib.diagnostics(
            setup.space, state.arch, state.mask).items()}}
    # A copy: the state's own arrays are donated to the next step.
    return scalars, jax.tree.map(jnp.copy, state.arch)

  return observe


def _reported(method, state, per_epoch):
  """What a method says of its own state, at the end of an epoch."""
  report = method.extra.report
  if report is None or int(state.step) % per_epoch:
    return {}
  return {name: float(value) for name, value in report(state.extra).items()}


def _of_genotype(setup, dataset, state, logged, per_epoch, watch):
  """What is logged of the derived genotype and of the last one logged."""
  space, method = setup.space, setup.method
  if method.derive is None:
    return {}
  mask = state.mask or None
  genotype = method.derive(space, state.arch, mask)
  free = genotypes.parameterless(genotype, space)
  known = {}
  if (found := benchmarks.accuracy(space, genotype, dataset)) is not None:
    known['table_accuracy'] = found
  return known | {
      'genotype_changes': _changes(
          method.derive(space, logged, mask), genotype),
      **{f'parameterless_{t}': n for t, n in free.items()},
      **watch(genotype, int(state.step) / per_epoch)}


def _changes(before, after):
  """How many (operation, predecessor) entries of the genotype are new."""
  return sum(
      len(set(new) - set(old))
      for t in genotypes.cell_types(after)
      for old, new in zip(getattr(before, t), getattr(after, t)))


class Start(NamedTuple):
  """Where a search begins that goes on from another, or stops before its end.

  Attributes:
    mask: see `State`; () for all candidates.
    state: the other's last, on the host: all of it is continued. None: fresh.
    theta, arch: weights and architecture instead of fresh ones, if there is no
      `state`; None: fresh.
    last: the step after which it stops; None: the recipe's last.
  """

  mask: Mask | tuple = ()
  state: State | None = None
  theta: Any = None
  arch: Any = None
  last: int | None = None


FRESH = Start()


class Prepared(NamedTuple):
  """A search whose programs are compiled."""

  search: Search
  program: loop.Program
  carry: loop.Carry


def prepare(setup: Setup, recipe: SearchRecipe, dataset: data.Dataset,
            seed: int, part: Part = ONLY,
            lines: Callable[[], Iterable[Mapping]] = tuple,
            start: Start = FRESH, like: Prepared | None = None) -> Prepared:
  """Compiles a search, after saying what the run will cost.

  Args:
    setup, recipe, dataset, seed, part, lines: as in `build`.
    start: where it begins.
    like: of the same arguments up to part and start, whose programs it takes.

  Raises:
    UserError: the program needs more memory than there is.
  """
  search = build(setup, recipe, dataset, seed, part, lines, start.mask)
  mesh = setup.mesh
  placement = loop.Placement(
      mesh_lib.replicated(mesh), mesh_lib.split_batch(mesh)) if mesh else None
  state = _started(search.state, start)
  search = search._replace(phase=search.phase._replace(
      memo=jax.tree.map(jnp.copy, state.arch), first=int(state.step),
      steps=search.phase.steps if start.last is None else start.last))
  batch = search.phase.batches(0)
  carry = loop.init_carry(
      search.update, state, batch, search.phase.memo, placement)
  if like is not None:
    phase = search.phase._replace(boundary=like.search.phase.boundary)
    return Prepared(search._replace(phase=phase), like.program._replace(
        compile_seconds=0.), carry)
  program = loop.compile_step(
      search.update, carry, batch, part.name, placement)
  size = memory.Size(
      'search', recipe.batch_size, recipe.accumulate, recipe.dtype,
      recipe.channels, setup.sizes.image_size, *mesh_lib.sizes(mesh), recipe.k,
      search.way)
  if search.boundary is not None:
    end = loop.compile_boundary(
        search.boundary, carry.state, batch, placement)
    memory.check_memory('the end of an epoch of the search', end, size)
    search = search._replace(phase=search.phase._replace(boundary=end.call))
    program = program._replace(
        compile_seconds=program.compile_seconds + end.compile_seconds)
  memory.announce('the search', search.phase, program, carry, batch, size)
  return Prepared(search, program, carry)


def _started(state, start):
  """The first state of a search, by its `Start`."""
  if start.state is not None:
    state = jax.tree.map(jnp.asarray, start.state)
    return state._replace(mask=jax.tree.map(jnp.asarray, start.mask))
  for name in ('theta', 'arch'):
    if (tree := getattr(start, name)) is not None:
      state = state._replace(**{name: jax.tree.map(jnp.asarray, tree)})
  return state


def run(setup: Setup, recipe: SearchRecipe, dataset: data.Dataset, seed: int,
        settings: loop.Settings, writer: Any, stop: Any,
        origin: Mapping[str, Any] | None = None, part: Part = ONLY,
        start: Start = FRESH, known: Prepared | None = None,
        ) -> tuple[loop.Outcome, Genotype | None]:
  """Searches, or continues a search, in the folder of `settings`.

  Writes genotype.json at every checkpoint and at the end, once every process
  has derived the same.

  Args:
    setup, recipe, dataset, seed: as in `build`.
    settings: folder and intervals, see `loop.Settings`.
    writer: `metrics.MetricsWriter`.
    stop: see `loop.run`.
    origin: more JSON values to keep in genotype.json.
    part: which search of the run it is.
    start: where it begins.
    known: what `prepare` gave for the same part and start.

  Returns:
    (outcome, genotype); None where the plan chooses it.
  """
  method, space = setup.method, setup.space

  def on_checkpoint(step, state):
    if method.derive is not None:
      genotype = method.derive(space, state.arch, state.mask or None)
      save_genotype(settings.workdir, setup, seed, step, genotype, origin)

  search, program, carry = known or prepare(
      setup, recipe, dataset, seed, part,
      functools.partial(metrics.read, settings.workdir), start)
  outcome = loop.run(
      search.phase._replace(on_checkpoint=on_checkpoint), program, carry,
      settings, writer, stop)
  outcome = outcome._replace(
      figures=outcome.figures | {
          'samples': search.way, 'evaluator': choose_evaluator(
              space, method, recipe.evaluator)})
  if method.derive is None:
    return outcome, None
  state = outcome.state
  genotype = method.derive(space, state.arch, state.mask or None)
  found = hosts.from_first(lambda: diagnostics.figures(
      metrics.read(settings.workdir), part.name, genotype, space))
  return outcome._replace(figures=outcome.figures | found), genotype


def save_genotype(workdir: pathlib.Path, setup: Setup, seed: int, step: int,
                  genotype: Genotype,
                  origin: Mapping[str, Any] | None = None) -> None:
  """Writes genotype.json, once every process has derived the same.

  Args:
    workdir: folder of the run.
    setup, seed, origin: as in `run`.
    step: after which it was derived.
    genotype: the value.
  """
  hosts.compare(f'genotype at step {step}', genotypes.to_text(genotype))
  if hosts.is_first():
    genotypes.save(
        workdir / 'genotype.json', genotype, space=setup.space.name, seed=seed,
        step=step, method=setup.method.name, **(origin or {}))
