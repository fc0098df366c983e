"""Plans: what a search does besides training its supernet.

Most rows train once and derive (`method.OneSearch`). A row without
architecture parameters compares architectures afterwards, with the weights of
the supernet.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax import data, families
from rome_jax.spaces import Space, genotypes
from rome_jax.spaces.genotypes import Genotype
from rome_jax.train import optim

# Li and Talwalkar (UAI 2019) and their code: a thousand random architectures
# on a few batches, the best ten on the whole validation set.
SCREENING_BATCHES = 10
FINALISTS = 10


class Chosen(NamedTuple):
  """What a random search found.

  Attributes:
    genotype: the best of the finalists.
    accuracy: its one-shot accuracy on the whole validation half.
    compared: different architectures that were screened.
  """

  genotype: Genotype
  accuracy: float
  compared: int


def random_search(space: Space, accuracy: Callable[..., float], count: int,
                  seed: int) -> Chosen:
  """The best of random architectures by their one-shot accuracy.

  Architecture i depends on the seed and i alone. Equal accuracies: the first.

  Args:
    space: the search space.
    accuracy: (genotype, batches) -> accuracy on so many validation batches;
      None: on all.
    count: architectures to draw; one that is drawn twice is compared once.
    seed: of the draws.
  """
  drawn = dict.fromkeys(
      genotypes.random(space, np.random.Generator(np.random.Philox(
          key=[seed, i]))) for i in range(count))
  screened = {g: accuracy(g, SCREENING_BATCHES) for g in drawn}
  finalists = sorted(drawn, key=lambda g: -screened[g])[:FINALISTS]
  final = {g: accuracy(g, None) for g in finalists}
  best = max(finalists, key=final.__getitem__)
  return Chosen(best, final[best], len(drawn))


def one_shot_accuracy(network: Any, theta: Any, split: data.Split,
                      indices: Sequence[int], transform: Callable,
                      batch_size: int, dtype: str = 'float32',
                      ) -> Callable[..., float]:
  """The function (genotype, batches) -> accuracy with a supernet's weights.

  BatchNorm uses the statistics of each batch, as in the search, so batches are
  full: the images of a last, smaller one are left out.

  Args:
    network: the supernet, a Flax module with its `space`.
    theta: its weights.
    split: whose images are evaluated, unaugmented.
    indices: of those images.
    transform: made for testing.
    batch_size: images of a batch; fewer if there are fewer.
    dtype: of the activations.
  """
  size = min(batch_size, len(indices))
  total = len(indices) // size

  @jax.jit
  def correct(theta, cells, batch, key):
    logits = network.apply(
        {'params': theta}, batch['image'].astype(dtype), cells,
        rngs={'noise': key})
    return optim.correct(logits, batch['label']).mean()

  def batch(i):
    chosen = np.asarray(indices[i * size:(i + 1) * size])
    return {'image': transform(split.get(chosen), None),
            'label': split.labels[chosen]}

  def accuracy(genotype: Genotype, batches: int | None = None) -> float:
    cells = families.arch_of(genotype, network.space)
    used = total if batches is None else min(batches, total)
    found = [correct(theta, cells, batch(i), jax.random.key(i))
             for i in range(used)]
    return float(jnp.stack(found).mean())

  return accuracy
