"""Searches of seconds along a method's plan, in this process."""

import numpy as np
from stopping import StopAfter

from rome_jax import data, families
from rome_jax.spaces import Sizes
from rome_jax.train import loop, metrics, plans, recipes
from rome_jax.train.setup import Setup

CLASSES = 3
RETRAINING = recipes.RetrainRecipe()
TIMES = ('time', 'seconds', 'images_per_second', 'step_ms', 'input_wait_ms')


def dataset(n=16):
  """n images of 8x8, class by class; the same for training and test."""
  rng = np.random.default_rng(0)
  split = data.ArraySplit(rng.integers(0, 256, (n, 8, 8, 3), np.uint8),
                          np.arange(n, dtype=np.int32) % CLASSES)
  return data.Dataset('npz', split, split, CLASSES, 8, 3, (.5,) * 3, (.25,) * 3)


def setup_of(method, space):
  """For a supernet of 1 cell and 2 channels."""
  return Setup(space, families.get(space), method, Sizes(1, 2, CLASSES, 8),
               'cifar')


def go(workdir, method, space, recipe, stop=None, follow=None, images=16,
       retraining=RETRAINING):
  """What `plans.run` gives, or `follow` in its place.

  Args:
    workdir: folder of the run.
    method, space, recipe, images, retraining: what is run.
    stop: after how many looks it is asked to stop; None: never.
    follow: takes the arguments of `search.run`.
  """
  settings = loop.Settings(workdir, 2, 2, 2)
  with metrics.MetricsWriter(workdir, tensorboard=False) as writer:
    first = setup_of(method, space), recipe
    rest = dataset(images), 5, settings, writer, StopAfter(stop)
    if follow is not None:
      return follow(*first, *rest)
    return plans.run(*first, retraining, *rest)


def lines(workdir):
  """Rows of metrics.jsonl without what a clock says."""
  return [{k: v for k, v in row.items() if k not in TIMES}
          for row in metrics.read(workdir)]
