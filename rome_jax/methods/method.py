"""The row of a method: a NamedTuple of pure functions and a few facts.

A method is one value of `Method`. `methods.step` is the only reader of a row's
updates; nothing here knows of networks, data or configs.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.engine.archs import CellArch
from rome_jax.spaces import Space
from rome_jax.spaces.genotypes import Genotype


class ArchParams(NamedTuple):
  """Architecture parameters, shared by all cells of a type.

  Attributes:
    alpha: {cell type: [S,C]}, a row per site (edge or node).
    beta: {cell type: [n]}, weights of edges or of sets of edges; [0] where a
      method has none.
  """

  alpha: dict[str, jax.Array]
  beta: dict[str, jax.Array]


class Noise(NamedTuple):
  """What the sampling of one architecture depends on besides parameters.

  Attributes:
    alpha, beta: Gumbel(0, 1), of the shapes of `ArchParams`.
    ops: {cell type: [S] int}, columns of alpha, to set the operations instead
      of sampling them; None: they are sampled.
  """

  alpha: dict[str, jax.Array]
  beta: dict[str, jax.Array]
  ops: dict[str, jax.Array] | None = None


Mask = Mapping[str, Any]  # {cell type: bool [S,C]}


def full_mask(space: Space) -> dict[str, np.ndarray]:
  """{cell type: bool [S,C]}: every candidate of the space.

  >>> from rome_jax.spaces import S1
  >>> full_mask(S1)['normal'].sum()
  np.int64(28)
  """
  return {t: space.choices(t) >= 0 for t in space.cell_types}


def mask_to_names(space: Space, mask: Mask) -> dict[str, list[list[str]]]:
  """{cell type: the names that a mask keeps, site by site}, for JSON."""
  return {t: [
      [space.ops[o] for o in row[kept]]
      for row, kept in zip(space.choices(t), np.asarray(mask[t]))]
          for t in space.cell_types}


def mask_from_names(space: Space, names: Mapping[str, Any]) -> dict[
    str, np.ndarray]:
  """The inverse of `mask_to_names`."""
  return {t: np.array([
      [o >= 0 and space.ops[o] in kept for o in row]
      for row, kept in zip(space.choices(t), names[t])])
          for t in space.cell_types}


class State(NamedTuple):
  """Everything that a step changes; what a checkpoint holds.

  Attributes:
    step: int32, steps done.
    seed: uint32; the noise of a step depends on (seed, step) alone, so a
      resumed search draws what the uninterrupted one would.
    theta: weights of the supernet.
    arch: architecture parameters; () if the method learns none.
    theta_opt, arch_opt: Optax states.
    mask: {cell type: bool [S,C]}, the candidates that may be sampled; () for
      all of the space.
    extra: the method's own, see `Extra`.
  """

  step: jax.Array
  seed: jax.Array
  theta: Any
  arch: Any
  theta_opt: Any
  arch_opt: Any
  mask: Any = ()
  extra: Any = ()


class ArchInit(Protocol):
  """Initial architecture parameters; () for a method that learns none."""

  def __call__(self, space: Space, key: jax.Array, alpha_std: float = 1e-3,
               beta_std: float = 1e-3) -> Any: ...


class NoiseLaw(Protocol):
  """Noise of K samples: a `Noise` whose leaves have a leading axis of K."""

  def __call__(self, space: Space, arch: Any, key: jax.Array,
               k: int) -> Noise: ...


class Sampler(Protocol):
  """One architecture, {cell type: CellArch} (unbatched)."""

  def __call__(self, space: Space, arch: Any, noise: Noise, tau: Any,
               mask: Mask | None = None) -> dict[str, CellArch]: ...


class Derive(Protocol):
  """The genotype of architecture parameters, on the host."""

  def __call__(self, space: Space, arch: Any,
               mask: Mask | None = None) -> Genotype: ...


class GradientRule(Protocol):
  """((loss, metrics), gradients) for one update; see `methods.rules`."""

  def __call__(self, objective: Any, update: 'Update', state: State,
               batches: Mapping[str, Any], key: jax.Array) -> Any: ...


class Update(NamedTuple):
  """One line of a method's pseudo-code.

  Attributes:
    params: what moves: 'theta', 'arch' or 'both'.
    batch: on which half of the data: 'train' or 'valid'.
    rule: where its gradient comes from; None: `rules.first_order`.
  """

  params: str
  batch: str
  rule: GradientRule | None = None


class Seen(NamedTuple):
  """What a method may learn from an update of theta.

  Attributes:
    space: the search space.
    gradients: of theta, the supernet's tree, not clipped.
    norms: () -> {cell type: [S,C]}, of each candidate's gradient; see
      `engine.owners.site_norms`.
    batch: the batch; with `index` [B], places among the training images, if
      the method draws them.
    metrics: of the loss; with `scores` [B], ||softmax - onehot|| of each
      image, in the same case.
  """

  space: Space
  gradients: Any
  norms: Callable[[], dict[str, jax.Array]]
  batch: Any
  metrics: dict[str, jax.Array]


class Extra(NamedTuple):
  """State of a method's own, and when it changes; by default there is none.

  Attributes:
    init: (space, number of training images) -> pytree of arrays. If it takes a
      keyword `state` it is told the rest of the first state.
    observe: (extra, `Seen`) -> extra, inside the step, before the optimiser,
      after an update that moves theta.
    boundary: (objective, state, batches, epoch, key) -> state, once at the
      end of an epoch, in a program of its own; `epoch` counts those done, and
      `objective` is that of a rule. It may set back the state, `step` too:
      the search then lasts until `step` has come to its end.
    draw: extra -> [n] weights of the training images, by which those of the
      next epoch are drawn; equal ones mean that each is read once.
    stop: extra -> bool, asked after each boundary: whether the search ends.
    report: extra -> {name: scalar}, for the line that follows a boundary;
      NaN is not written.
    reports: the names that `report` gives.
    hyperparameters: what of theta's optimiser a boundary changes, such as
      ('weight_decay',), so that it is in the optimiser's state.
  """

  init: Callable[..., Any] | None = None
  observe: Callable[..., Any] | None = None
  boundary: Callable[..., State] | None = None
  draw: Callable[[Any], jax.Array] | None = None
  stop: Callable[[Any], Any] | None = None
  report: Callable[[Any], dict[str, Any]] | None = None
  reports: tuple[str, ...] = ()
  hyperparameters: tuple[str, ...] = ()


class OneSearch(NamedTuple):
  """A plan: train the supernet once, then derive."""


class Evolve(NamedTuple):
  """A plan: train the supernet, then choose among architectures.

  Each is evaluated with the supernet's weights on the validation half.
  `search.evolution` says how they are found: by evolution (Guo et al., ECCV
  2020), at random (Li and Talwalkar, UAI 2019: random search with weight
  sharing) or by local search; `search.candidates` how many.
  """


class Stages(NamedTuple):
  """A plan: search in stages, each with fewer candidates and more cells.

  P-DARTS (Chen et al., ICCV 2019). Each stage trains fresh weights and a fresh
  architecture; then every site keeps its strongest candidates. How many cells,
  candidates and how much dropout a stage has say `search.stage_cells`,
  `search.stage_keep` and `search.stage_skip_dropout`. The genotype is that of
  the last stage.
  """


class TrainRandom(NamedTuple):
  """A plan: train random architectures alone and keep the most accurate.

  Each is trained from scratch on the theta half and tested on the alpha half
  (random search in DARTS, Liu et al., ICLR 2019). How many is
  `search.candidates`, how long `search.epochs`.
  """


def any_space(method: 'Method', space: Space, section: Any) -> str | None:
  """The check of a method that runs in every space."""
  del method, space, section
  return None


class Method(NamedTuple):
  """One row.

  Attributes:
    name: in configs and files.
    init: see `ArchInit`.
    sample: see `Sampler`.
    derive: see `Derive`; None where the plan chooses the genotype.
    updates: in the order of Algorithm 1.
    noise: see `NoiseLaw`.
    partial: 1/partial of the channels pass the operations (PC-DARTS).
    extra: see `Extra`.
    plan: `OneSearch`, `Evolve`, `Stages` or `TrainRandom`.
    recipe: {field of a config: value} where the paper differs from the
      defaults, which are ROME's.
    check: (the row, space, section `search` of a config) -> what is wrong, one
      sentence without the word config, or None.

  >>> from rome_jax import methods
  >>> mine = methods.rome_v2._replace(name='mine', recipe={'search.k': 4})
  >>> [update.params for update in mine.updates]
  ['arch', 'theta']
  """

  name: str
  init: ArchInit
  sample: Sampler
  derive: Derive | None
  updates: tuple[Update, ...]
  noise: NoiseLaw
  partial: int = 1
  extra: Extra = Extra()
  plan: OneSearch | Evolve | Stages | TrainRandom = OneSearch()
  recipe: Mapping[str, Any] = types.MappingProxyType({})
  check: Callable[..., str | None] = any_space


ARCH, THETA = Update('arch', 'valid'), Update('theta', 'train')


def normal(space: Space, key: jax.Array, beta_size: int,
           alpha_std: float = 1e-3, beta_std: float = 1e-3) -> ArchParams:
  """alpha and beta ~ N(0, std) (DARTS: 1e-3), beta with `beta_size` entries."""
  keys = iter(jax.random.split(key, 2 * len(space.cell_types)))

  def table(std, shape):
    return {t: std * jax.random.normal(next(keys), shape)
            for t in space.cell_types}

  return ArchParams(
      table(alpha_std, (space.num_sites, space.num_choices)),
      table(beta_std, (beta_size,)))


def alpha_and_parents(space: Space, key: jax.Array, alpha_std: float = 1e-3,
                      beta_std: float = 1e-3) -> ArchParams:
  """The `ArchInit` of methods whose edges all stay.

  Edges have weights only where nodes hold the operations.
  """
  size = space.num_edges if space.sites == 'nodes' else 0
  return normal(space, key, size, alpha_std, beta_std)


def no_parameters(space: Space, key: jax.Array, alpha_std: float = 1e-3,
                  beta_std: float = 1e-3) -> tuple:
  """The `ArchInit` of a method without architecture parameters."""
  del space, key, alpha_std, beta_std
  return ()


def gumbel(arch: ArchParams, key: jax.Array, k: int) -> Noise:
  """Gumbel(0, 1) noise for K samples: the shapes of `arch` after K."""
  leaves, treedef = jax.tree.flatten(arch)
  return Noise(*jax.tree.unflatten(treedef, [
      jax.random.gumbel(key, (k, *leaf.shape), leaf.dtype)
      for key, leaf in zip(jax.random.split(key, len(leaves)), leaves)]))


def gumbel_of_arch(space: Space, arch: ArchParams, key: jax.Array,
                   k: int) -> Noise:
  """The `NoiseLaw` of sampled architectures."""
  del space
  return gumbel(arch, key, k)


def gumbel_of_space(space: Space, arch: Any, key: jax.Array, k: int) -> Noise:
  """The `NoiseLaw` of uniform architectures: Gumbel noise on equal logits."""
  del arch
  shapes = ArchParams(
      {t: jnp.zeros((space.num_sites, space.num_choices))
       for t in space.cell_types},
      {t: jnp.zeros(space.num_edges) for t in space.cell_types})
  return gumbel(shapes, key, k)


def no_noise(space: Space, arch: Any, key: jax.Array, k: int) -> Noise:
  """The `NoiseLaw` of methods that evaluate one and the same mixture.

  A leaf without meaning carries K.
  """
  del space, arch, key
  return Noise({}, {}, {'': jnp.zeros((k, 0), jnp.int32)})
