"""Image data: sources, augmentation, and batches that depend on (seed, step).

::

  dataset = data.load('cifar10', '/path/to/cifar10')
  transform = data.make_transform('cifar', dataset, train=True, cutout=16)
  batches = data.Batches(dataset.train, None, 96, seed=0, transform=transform)
  for batch in data.prefetch(batches, start=0, stop=1000):
    ...
"""

from rome_jax.data.augment import KINDS, make_transform
from rome_jax.data.batches import (
    Batches,
    EvaluationBatches,
    evaluation_batches,
    halves,
    prefetch,
)
from rome_jax.data.ramped import RampedBatches
from rome_jax.data.sources import SOURCES, from_arrays, from_examples, load
from rome_jax.data.splits import ArraySplit, Dataset, LazySplit, Split

__all__ = [
    'KINDS', 'SOURCES', 'ArraySplit', 'Batches', 'Dataset',
    'EvaluationBatches', 'LazySplit', 'RampedBatches', 'Split',
    'evaluation_batches', 'from_arrays', 'from_examples', 'halves', 'load',
    'make_transform', 'prefetch',
]
