"""Signs of collapse while a search runs, and the sentence that says so.

A search that is going wrong derives cells of skips and pooling, its alpha
grows sharp in that direction (the dominant eigenvalue rises), and its derived
network falls far behind the mixture it is cut from (Zela et al., ICLR 2020).
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from rome_jax import data, families
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
LONG = 5_000  # steps


def make_test(setup: Setup, recipe: SearchRecipe, network: nn.Module,
              valid: data.Batches, dataset: data.Dataset,
              eigenvalue: Callable[..., Any] | None,
              batches: Callable[[int], Any], steps: int, steps_per_epoch: int,
              ) -> tuple[Callable[[State], Scalars] | None, int]:
  """What a search measures besides its steps.

  Args:
    setup, recipe, dataset: of the search.
    network: the supernet.
    valid: batches of the validation half.
    eigenvalue: see `make_eigenvalue`, or None.
    batches: those of the steps, for the eigenvalue.
    steps, steps_per_epoch: of the search.

  Returns:
    (state -> scalars, or None if nothing is to be measured; steps between two
    calls), for `loop.Phase`.
  """
  derived, number = None, gap_batches(recipe, steps)
  if number and setup.method.derive is not None:
    derived = Derived(setup, recipe, network, valid, dataset, number)
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
          'dominant_eigenvalue': float(value) + recipe.alpha_weight_decay,
          'eigenvalue_bound': float(bound)}
    return scalars

  return test, every * steps_per_epoch


def gap_batches(recipe: SearchRecipe, steps: int) -> int:
  """How many batches measure the gap in a search of so many steps.

  Compiling it took 6 s of CPU time where the step took 26 s (the quickstart's
  supernet; 2 cores, 2026-11-26), too long for a search of seconds.

  >>> gap_batches(SearchRecipe(), 19_500), gap_batches(SearchRecipe(), 176)
  (16, 0)
  """
  if recipe.gap_batches >= 0:
    return recipe.gap_batches
  return GAP_BATCHES if steps >= LONG else 0


def make_eigenvalue(parts: tuple[Any, ...], mesh: Any = None,
                    ) -> Callable[..., Any]:
  """The program (state, batches) -> `curvature.Eigenvalue`, without L2.

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


def has_eigenvalue(method: Method) -> bool:
  """Whether the validation loss is a function of alpha.

  >>> from rome_jax import methods
  >>> has_eigenvalue(methods.darts), has_eigenvalue(methods.gdas)
  (True, False)
  """
  return method.noise is no_noise and method.derive is not None


class Derived:
  """state -> {'derived_accuracy'} with the supernet's weights.

  The first batches of the validation half, not augmented, the same each time;
  BatchNorm takes the statistics of the batch, as in the search. One program
  serves all genotypes; it is compiled at the first call.
  """

  def __init__(self, setup: Setup, recipe: SearchRecipe, network: nn.Module,
               valid: data.Batches, dataset: data.Dataset, number: int):
    """Takes at most `number` batches; compiles nothing yet."""
    mesh = setup.mesh
    plain = data.Batches(
        valid.split, valid.indices, valid.batch_size, valid.seed,
        data.make_transform(recipe.augment, dataset, train=False))
    self._number = min(number, plain.steps_per_epoch)
    self._batches = mesh_lib.sharded(
        plain, mesh_lib.split_batch(mesh) if mesh else None, plain.batch_size)
    self._setup = setup
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
    genotype = method.derive(space, state.arch)
    cells = jax.tree.map(
        lambda leaf: np.asarray(leaf)[None],
        families.arch_of(genotype, space, fewer_edges=True))
    total = 0.
    with data.prefetch(self._batches, 0, self._number) as batches:
      for i, batch in enumerate(batches):
        # For operations that draw: the same in every call.
        key = np.asarray(jax.random.key_data(
            jax.random.fold_in(jax.random.key(0), i)))
        scores = self._score(
            state.theta, cells, batch['image'], batch['label'], key)
        total += float(np.asarray(scores)[0, 0])
    return {'derived_accuracy': total / self._number}


# ------------------------------------------------------------------ collapse


class Watch:
  """Says on stderr that a cell has collapsed, once per cell type.

  A cell counts once it has been so for a tenth of the search, or at its end:
  at first alpha is noise, and so is the cell.
  """

  def __init__(self, space: Space, name: str, epochs: float):
    """Remembers the name of the phase and how long it lasts."""
    self._space, self._name, self._epochs = space, name, epochs
    self._since: dict[str, float] = {}
    self._said: set[str] = set()

  def __call__(self, genotype: Genotype, epoch: float) -> Scalars:
    """The scalars {'collapsed_<cell type>': 0 or 1}."""
    found = collapse.cells(genotype, self._space)
    for cell_type, cell in found.items():
      if not cell.collapsed:
        self._since.pop(cell_type, None)
        continue
      since = self._since.setdefault(cell_type, epoch)
      lasts = epoch - since >= self._epochs / 10 or epoch >= self._epochs
      if lasts and cell_type not in self._said:
        self._said.add(cell_type)
        print(f'{self._name}: warning: '
              f'{collapse.sentence(cell_type, cell, "since", since)}',
              file=sys.stderr, flush=True)
    return {f'collapsed_{t}': int(cell.collapsed)
            for t, cell in found.items()}


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
