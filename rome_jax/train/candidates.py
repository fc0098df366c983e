"""Random search over a trained supernet, for methods that learn no alpha.

Uniform architectures of the space are evaluated with the supernet's weights
on the validation half; the most accurate is derived (Guo et al., ECCV 2020,
with random search in place of evolution; Li and Talwalkar, UAI 2019).
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rome_jax import data, families
from rome_jax.devices import mesh as mesh_lib
from rome_jax.spaces import Space, genotypes
from rome_jax.spaces.genotypes import Genotype
from rome_jax.train import optim
from rome_jax.train.recipes import SearchRecipe
from rome_jax.train.setup import Setup


def draw(space: Space, number: int, seed: int) -> list[Genotype]:
  """`number` uniform genotypes of a space, the same for the same seed."""
  # No retraining of a random architecture draws from this key: theirs are
  # numbered from 0.
  rng = np.random.Generator(np.random.Philox(key=[seed, 2**32]))
  return [genotypes.random(space, rng) for _ in range(number)]


def accuracies(network: Any, theta: Any, found: list[Genotype],
               batches: Callable[[int], Any], number: int,
               dtype: str = 'float32',
               mesh: Mesh | None = None) -> np.ndarray:
  """One-shot accuracy of each genotype, with statistics of the batch.

  Args:
    network: the supernet.
    theta: its weights.
    found: N genotypes of its space.
    batches: step -> {'image': [B,H,W,C], 'label': [B]}.
    number: batches to evaluate.
    dtype: of the activations.
    mesh: devices, or None for one.

  Returns:
    [N] shares of the images that are classified correctly.
  """
  rows = [families.arch_of(genotype, network.space) for genotype in found]
  cells = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

  def correct(theta, cells, batch, key):
    images = batch['image'].astype(dtype)

    def of_one(cell):
      logits = network.apply(
          {'params': theta}, images, cell,
          rngs={'noise': jax.random.wrap_key_data(key)})
      return optim.correct(logits, batch['label']).mean()

    return jax.lax.map(of_one, cells)

  shardings: dict[str, Any] = {}
  if mesh is not None:
    one = mesh_lib.replicated(mesh)
    shardings = dict(
        in_shardings=(one, one, mesh_lib.split_batch(mesh), one),
        out_shardings=one)
  program = jax.jit(correct, **shardings)
  total = np.zeros(len(found))
  for step in range(number):
    key = np.asarray(jax.random.key_data(
        jax.random.fold_in(jax.random.key(0), step)))
    total += np.asarray(program(theta, cells, batches(step), key))
  return total / number


def best(network: Any, setup: Setup, recipe: SearchRecipe, theta: Any,
         valid: data.Batches, dataset: data.Dataset,
         seed: int) -> tuple[Genotype, dict[str, float]]:
  """The most accurate of `recipe.candidates` random architectures.

  Args:
    network: the supernet.
    setup, recipe, dataset, seed: of the search.
    theta: trained weights.
    valid: batches of the validation half.

  Returns:
    (genotype, {'candidates': N, 'candidate_accuracy': of the best,
    'candidate_accuracy_mean': of all}).
  """
  print(f'search: evaluating {recipe.candidates} architectures',
        file=sys.stderr, flush=True)
  plain = data.Batches(
      valid.split, valid.indices, valid.batch_size, valid.seed,
      data.make_transform(recipe.augment, dataset, train=False))
  mesh = setup.mesh
  batches = mesh_lib.sharded(
      plain, mesh_lib.split_batch(mesh) if mesh else None, plain.batch_size)
  found = draw(setup.space, recipe.candidates, seed)
  scores = accuracies(network, theta, found, batches, plain.steps_per_epoch,
                      recipe.dtype, mesh)
  place = int(np.argmax(scores))
  return found[place], {
      'candidates': len(found), 'candidate_accuracy': float(scores[place]),
      'candidate_accuracy_mean': float(scores.mean())}
