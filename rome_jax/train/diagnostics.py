"""Signs of collapse while a search runs, and the sentence that says so.

A search that is going wrong derives cells of skips and pooling, its alpha
grows sharp in that direction (the dominant eigenvalue rises), and its derived
network falls far behind the supernet it is cut from (Zela et al., ICLR 2020).
"""

import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from rome_jax import data, families
from rome_jax.devices import hosts
from rome_jax.devices import mesh as mesh_lib
from rome_jax.methods import curvature
from rome_jax.methods import step as step_lib
from rome_jax.methods.method import Extra, Method, State, no_noise
from rome_jax.spaces import Space, collapse
from rome_jax.spaces.genotypes import Genotype
from rome_jax.train import ranking
from rome_jax.train.recipes import SearchRecipe
from rome_jax.train.setup import Setup

Scalars = dict[str, float]

GAP_BATCHES = 16  # at 64 images: a standard error of at most 1.6 points
LONG = 500_000  # images: 20 epochs of half of CIFAR-10


def make_test(setup: Setup, recipe: SearchRecipe, network: nn.Module,
              valid: data.Batches, dataset: data.Dataset,
              tau: Callable[[Any], Any],
              eigenvalue: Callable[..., Any] | None,
              batches: Callable[[int], Any], steps: int, steps_per_epoch: int,
              ) -> tuple[Callable[[State], Scalars] | None, int]:
  """What a search measures besides its steps.

  Args:
    setup, recipe, dataset: of the search.
    network: the supernet.
    valid: batches of the validation half.
    tau: step -> temperature.
    eigenvalue: see `make_eigenvalue`, or None.
    batches: those of the steps, for the eigenvalue.
    steps, steps_per_epoch: of the search.

  Returns:
    (state -> scalars, or None if nothing is to be measured; steps between two
    calls), for `loop.Phase`.
  """
  derived, number = None, gap_batches(recipe, steps)
  if number and setup.method.derive is not None:
    derived = Derived(setup, recipe, network, valid, dataset, tau, number)
  if derived is None and eigenvalue is None:
    return None, 1
  every = 1 if derived is not None else recipe.eigenvalue_every

  def test(state):
    scalars = {} if derived is None else derived(state)
    step = int(state.step)
    # The last step of a search may lie within an epoch.
    if eigenvalue is not None and (
        step % steps_per_epoch
        or step // steps_per_epoch % recipe.eigenvalue_every == 0):
      # As the authors: on the validation batch of the last step.
      value, bound = eigenvalue(state, batches(step - 1))
      scalars |= {
          'dominant_eigenvalue': float(value),
          'eigenvalue_bound': float(bound)}
    return scalars

  return test, every * steps_per_epoch


def gap_batches(recipe: SearchRecipe, steps: int) -> int:
  """How many batches measure the gap in a search of so many steps.

  Images decide, as steps depend on the batch: full-size searches of all rows
  have it. Compiling one of its two programs took 6 s of CPU time where the
  step took 26 s (the quickstart's supernet; 2 cores, 2026-11-26), too long for
  a search of seconds.

  >>> gap_batches(SearchRecipe(), 19_500), gap_batches(SearchRecipe(), 176)
  (16, 0)
  """
  if recipe.gap_batches >= 0:
    return recipe.gap_batches
  return GAP_BATCHES if steps * recipe.batch_size >= LONG else 0


def make_eigenvalue(parts: tuple[Any, ...], mesh: Any = None,
                    ) -> Callable[..., Any]:
  """The program (state, batches) -> `curvature.Eigenvalue`, L2 included.

  Args:
    parts: the arguments of `step.make_boundary`.
    mesh: devices, or None for one.
  """

  def measure(objective, state, batches, epoch, key):
    del epoch
    return curvature.dominant(objective, state, batches['valid'], key)

  method: Method = parts[0]
  measured = method._replace(extra=Extra(boundary=measure))
  shardings: dict[str, Any] = {}
  if mesh is not None:
    one = mesh_lib.replicated(mesh)
    shardings = dict(in_shardings=(one, mesh_lib.split_batch(mesh)),
                     out_shardings=one)
  return jax.jit(step_lib.make_boundary(measured, *parts[1:]), **shardings)


def no_eigenvalue(method: Method) -> str:
  """Why the eigenvalue of a method is not to be logged, or ''.

  >>> from rome_jax import methods
  >>> no_eigenvalue(methods.darts), no_eigenvalue(methods.gdas)
  ('', 'which samples architectures')
  """
  if all(update.params == 'theta' for update in method.updates):
    return 'which learns no alpha'
  if method.noise is not no_noise:
    return 'which samples architectures'
  if 'dominant_eigenvalue' in method.extra.reports:
    return 'which measures and logs the eigenvalue itself'
  return ''


class Derived:
  """state -> accuracies of the supernet and its derived network, and the gap.

  Both have the supernet's weights and the same images: the first batches of
  the validation half, not augmented, the same each time. BatchNorm takes the
  statistics of the batch, as in the search. The supernet is that of alpha and
  tau as they are, a mixture or, for each batch, one sampled architecture; its
  noise is the same each time. Compiled at the first call: a program for
  derived networks and, if they have other slots, one for the supernet.
  """

  def __init__(self, setup: Setup, recipe: SearchRecipe, network: nn.Module,
               valid: data.Batches, dataset: data.Dataset,
               tau: Callable[[Any], Any], number: int):
    """Takes at most `number` batches; compiles nothing yet."""
    mesh = setup.mesh
    plain = data.Batches(
        valid.split, valid.indices, valid.batch_size, valid.seed,
        data.make_transform(recipe.augment, dataset, train=False))
    self._number = min(number, plain.steps_per_epoch)
    self._batches = mesh_lib.sharded(
        plain, mesh_lib.split_batch(mesh) if mesh else None, plain.batch_size)
    self._setup, self._tau = setup, tau
    self._sample = jax.jit(functools.partial(
        _sampled, setup.method, setup.space))
    if getattr(network, 'evaluator', 'listed') != 'listed':
      # A single path has nothing to run side by side.
      network = network.clone(evaluator='listed')
    shardings: dict[str, Any] = {}
    if mesh is not None:
      one, split = mesh_lib.replicated(mesh), mesh_lib.split_batch(mesh)
      shardings = dict(in_shardings=(one, one, split, split, one),
                       out_shardings=one)
    self._score = jax.jit(
        ranking.make_program(network, dtype=recipe.dtype), **shardings)

  def __call__(self, state: State) -> Scalars:
    space, method = self._setup.space, self._setup.method
    assert method.derive is not None
    arch, mask = jax.device_get((state.arch, state.mask))
    derived = families.arch_of(
        method.derive(space, arch, mask or None), space, fewer_edges=True)
    tau = self._tau(int(state.step) - 1)  # That of the last step.
    totals = np.zeros(2)
    with data.prefetch(self._batches, 0, self._number) as batches:
      for i, batch in enumerate(batches):
        # For samples and for operations that draw: the same in every call.
        key = jax.random.fold_in(jax.random.key(0), i)
        supernet = self._sample(arch, mask, tau, key)
        totals += [self._accuracy(state.theta, cells, batch, key)
                   for cells in (supernet, derived)]
    of_supernet, of_derived = (float(x) for x in totals / self._number)
    return {'supernet_accuracy': of_supernet, 'derived_accuracy': of_derived,
            'discretisation_gap': of_supernet - of_derived}

  def _accuracy(self, theta, cells, batch, key):
    block = jax.tree.map(lambda leaf: np.asarray(leaf)[None], cells)
    scores = self._score(theta, block, batch['image'], batch['label'],
                         np.asarray(jax.random.key_data(key)))
    return float(np.asarray(scores)[0, 0])


def _sampled(method, space, arch, mask, tau, key):
  """One architecture of the supernet: its mixture, or a sample."""
  noise = jax.tree.map(
      lambda leaf: leaf[0], method.noise(space, arch, key, 1))
  return method.sample(space, arch, noise, tau, mask or None)


# ------------------------------------------------------------------ collapse


class Watch:
  """Says on stderr that a cell has collapsed, once per cell type.

  A cell counts once it has been so for a tenth of the search, or at its end:
  at first alpha is noise, and so is the cell. A search that continues knows
  from its lines since when that is so, and what it has said.
  """

  def __init__(self, space: Space, name: str, epochs: float,
               lines: Callable[[], Iterable[Mapping[str, Any]]] = tuple):
    """Remembers the name of the phase and how long it lasts.

    Args:
      space: the search space.
      name: of the phase.
      epochs: of the phase.
      lines: () -> rows of metrics.jsonl so far, asked for at the first call.
    """
    self._space, self._name, self._epochs = space, name, epochs
    self._lines: Callable[[], Iterable[Mapping[str, Any]]] | None = lines
    self._since: dict[str, float] = {}
    self._said: set[str] = set()

  def __call__(self, genotype: Genotype, epoch: float) -> Scalars:
    """The scalars {'collapsed_<cell type>': 0 or 1}."""
    found = collapse.cells(genotype, self._space)
    if not hosts.is_first():
      return _flags(found)
    self._remember(found)
    for cell_type, cell in found.items():
      if self._is_news(cell_type, cell.collapsed, epoch):
        since = self._since[cell_type]
        print(f'{self._name}: warning: '
              f'{collapse.sentence(cell_type, cell, since)}',
              file=sys.stderr, flush=True)
    return _flags(found)

  def _remember(self, cell_types):
    """Goes through the lines of an earlier start, once."""
    rows, self._lines = self._lines() if self._lines else (), None
    for row in rows:
      for cell_type in cell_types:
        if row['phase'] == self._name and f'collapsed_{cell_type}' in row:
          self._is_news(
              cell_type, row[f'collapsed_{cell_type}'], row['epoch'])

  def _is_news(self, cell_type, collapsed, epoch):
    """Whether to say, now and never again, that a cell has collapsed."""
    if not collapsed:
      self._since.pop(cell_type, None)
      return False
    since = self._since.setdefault(cell_type, epoch)
    lasts = epoch - since >= self._epochs / 10 or epoch >= self._epochs
    news = lasts and cell_type not in self._said
    if news:
      self._said.add(cell_type)
    return news


def _flags(found):
  return {f'collapsed_{t}': int(cell.collapsed) for t, cell in found.items()}


def figures(rows: Sequence[Mapping[str, Any]], phase: str, genotype: Genotype,
            space: Space) -> dict[str, Any]:
  """{'collapse': {cell type: facts}} of a search's last genotype, or {}.

  Args:
    rows: of metrics.jsonl; they say since when a cell has been collapsed.
    phase: of the search.
    genotype: what it derived.
    space: the search space.
  """
  found = {
      t: {'without_weights': cell.free, 'of': cell.of,
          'epoch': collapse.since(rows, phase, t)}
      for t, cell in collapse.cells(genotype, space).items()
      if cell.collapsed}
  return {'collapse': found} if found else {}
