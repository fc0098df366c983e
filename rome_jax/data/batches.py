"""Batches as pure functions of (seed, step), and a reader that works ahead."""

import collections
import concurrent.futures
import functools
import math
import time
from collections.abc import Callable

import numpy as np

from rome_jax import errors
from rome_jax.data import augment, draws, processes, splits

# Words of Philox's counter; they separate the streams of one key.
_ORDER, _AUGMENTATION, _HALVES, _DRAW, CUTOUT = range(5)


def generator(seed: int, number: int, stream: int) -> np.random.Generator:
  """Returns a NumPy generator that depends only on the three arguments."""
  return np.random.Generator(np.random.Philox(
      key=[seed % 2**64, number], counter=[0, 0, 0, stream]))


def halves(labels: np.ndarray, fraction_theta: float, fraction_alpha: float,
           seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Splits the training data in two (D_t and D_s of ROME, Algorithm 1).

  If the fractions add up to 1, one fixed random order is cut in two, as in
  DARTS; a part that this leaves without a class of two or more images gets one
  of them, for an image of the class it has most of. Smaller fractions take that
  share of each class (rounded down, at least one image), as in the search on
  10% + 10% of ImageNet.

  Args:
    labels: [n] integers.
    fraction_theta: share of the data for the weights.
    fraction_alpha: share for the architecture.
    seed: of the order.

  Returns:
    (indices_theta, indices_alpha): disjoint int arrays.

  Raises:
    UserError: a fraction is not positive, their sum is above 1, or a part
      has no images.
  """
  for field, value in (('fraction_theta', fraction_theta),
                       ('fraction_alpha', fraction_alpha)):
    if not 0 < value < 1:
      raise errors.UserError(f'{field}={value} must lie between 0 and 1')
  total = fraction_theta + fraction_alpha
  if total > 1 + 1e-9:
    raise errors.UserError(
        f'fraction_theta={fraction_theta} and '
        f'fraction_alpha={fraction_alpha} add up to {total:.6g}; at most 1 '
        'is possible')
  if total > 1 - 1e-9:
    order = generator(seed, 0, _HALVES).permutation(len(labels))
    cut = round(fraction_theta * len(labels))
    parts = order[:cut], order[cut:]
  else:
    parts = _class_shares(labels, fraction_theta, fraction_alpha, seed)
  if not len(parts[0]) or not len(parts[1]):
    raise errors.UserError(
        f'{len(labels)} images are too few to cut into parts of '
        f'{fraction_theta} and {fraction_alpha}')
  return _each_class_in_both(labels, *parts)


def _each_class_in_both(labels, theta, alpha):
  """Exchanges images until both parts have every class of two or more."""
  parts = [theta, alpha]
  for poor, rich in ((0, 1), (1, 0)):
    has, other = (np.bincount(labels[parts[i]], minlength=labels.max() + 1)
                  for i in (poor, rich))
    for wanted in np.flatnonzero((has == 0) & (other >= 2)):
      most = has.argmax()
      _move_last(parts, rich, poor, labels, wanted)
      has[wanted] += 1
      if has[most] >= 2:  # If not, the part grows by one.
        _move_last(parts, poor, rich, labels, most)
        has[most] -= 1
  return parts[0], parts[1]


def _move_last(parts, source, target, labels, wanted):
  """Moves the last image of a class from one part to the other."""
  position = np.flatnonzero(labels[parts[source]] == wanted)[-1]
  parts[target] = np.append(parts[target], parts[source][position])
  parts[source] = np.delete(parts[source], position)


def _class_shares(labels, fraction_theta, fraction_alpha, seed):
  theta, alpha = [], []
  for indices in splits.class_permutations(labels, seed):
    n = len(indices)
    # The 1e-9 keeps .1 * 130 at 13 in floating point.
    a, b = (max(math.floor(f * n + 1e-9), 1)
            for f in (fraction_theta, fraction_alpha))
    theta.append(indices[:a])
    alpha.append(indices[a:a + b])
  return np.concatenate(theta), np.concatenate(alpha)


class Batches:
  """Training batches: `batches(step)` is a pure function of (seed, step).

  Each epoch is a new random order of `indices`, or as many draws from them by
  weight. The same step always gives the same bytes, whatever was read before,
  so a resumed run sees the same batches.
  """

  def __init__(self, split, indices, batch_size, seed, transform,
               drop_last=True, weights=None):
    """Stores what batches are made of; reads no image.

    Args:
      split: an `ArraySplit` or `LazySplit`.
      indices: [n] int, the images to use; None for all.
      batch_size: images of a batch, B.
      seed: of order and augmentation. Two streams of one run need two seeds.
      transform: function of (images, rng), see `make_transform`.
      drop_last: skip the last images of an epoch if they do not fill a
        batch; otherwise the last batch is smaller.
      weights: [n] by which images are drawn, with replacement. Batches then
        say which they hold; equal weights read each image once, as None does.

    Raises:
      UserError: batch_size is below 1 or above the number of images.
    """
    self.split = split
    self.indices = np.arange(len(split)) if indices is None else (
        np.asarray(indices))
    if not 1 <= batch_size <= len(self.indices):
      raise errors.UserError(
          f'batch_size={batch_size} must lie between 1 and '
          f'{len(self.indices)}, the number of images')
    self.batch_size = batch_size
    self.seed = seed
    self.transform = transform
    full, rest = divmod(len(self.indices), batch_size)
    self.steps_per_epoch = full + (rest > 0 and not drop_last)
    self.drop_last = drop_last
    self.weights = None if weights is None else np.asarray(weights)
    # The cache only saves time: an epoch always has the same order.
    self._order = functools.lru_cache(maxsize=2)(self._draw_order)

  def __getstate__(self):
    return {k: v for k, v in vars(self).items() if k != '_order'}

  def __setstate__(self, state):  # In another process, with its own cache.
    vars(self).update(state)
    self._order = functools.lru_cache(maxsize=2)(self._draw_order)

  def weighted(self, weights: np.ndarray) -> 'Batches':
    """The same batches, drawn by other weights."""
    return Batches(self.split, self.indices, self.batch_size, self.seed,
                   self.transform, self.drop_last, weights)

  def _draw_order(self, epoch):
    number = len(self.indices)
    if self.weights is None or np.ptp(self.weights) == 0:
      return generator(self.seed, epoch, _ORDER).permutation(number)
    return draws.order(draws.quantised(self.weights), number,
                       generator(self.seed, epoch, _DRAW))

  def places(self, step: int) -> np.ndarray:
    """Returns which of `indices` form batch `step`: [B] int."""
    epoch, position = divmod(int(step), self.steps_per_epoch)
    start = position * self.batch_size
    return self._order(epoch)[start:start + self.batch_size]

  def batch_indices(self, step: int) -> np.ndarray:
    """Returns the images of the split that form batch `step`: [B] int."""
    return self.indices[self.places(step)]

  def __call__(self, step, rows=None):
    """Returns batch `step` (0, 1, ..., across epochs).

    Args:
      step: which batch.
      rows: [n] int, the rows to make; None for all. No other image is read.

    Returns:
      {'image': float32 [B, H, W, C], 'label': int32 [B]}; with `rows`, n
      instead of B. With weights also 'index', int32, the places in `indices`;
      'row', int32, those in the batch; and 'weight', float32, 1 / (n p) of a
      draw's probability p.
    """
    places = self.places(step)
    rng = generator(self.seed, int(step), _AUGMENTATION)
    kept = np.arange(len(places))
    if rows is not None:
      rng, kept = augment.RowGenerator(rng, len(places), rows), np.asarray(rows)
      places = places[rows]
    chosen = self.indices[places]
    batch = {'image': self.transform(self.split.get(chosen), rng),
             'label': self.split.labels[chosen]}
    if self.weights is None:
      return batch
    share = self.weights[places] / self.weights.mean()
    return batch | {'index': places.astype(np.int32),
                    'row': kept.astype(np.int32),
                    'weight': (1 / share).astype(np.float32)}


class EvaluationBatches:
  """Every image of a split once, in order; iterable, with a length.

  `batches(i)` is batch i, so `prefetch` works here too. The last batch is
  padded with zeros, so that all batches have one shape and need one compiled
  function. `mask` is 1 for images and 0 for padding.
  """

  def __init__(self, split, batch_size, transform):
    if batch_size < 1:
      raise errors.UserError(f'batch_size={batch_size} must be at least 1')
    self.split = split
    self.batch_size = batch_size
    self.transform = transform

  def __len__(self):
    return -(-len(self.split) // self.batch_size)

  def __iter__(self):
    return (self(i) for i in range(len(self)))

  def __call__(self, i, rows=None):
    """Returns batch i; `rows` as in `Batches`.

    Returns:
      {'image': float32 [B, H, W, C], 'label': int32 [B],
      'mask': float32 [B]}.
    """
    rows = np.arange(self.batch_size) if rows is None else rows
    chosen = int(i) * self.batch_size + rows
    chosen = chosen[chosen < len(self.split)]
    # A batch of padding only still needs the shape of an image.
    read = chosen if len(chosen) else np.array([len(self.split) - 1])
    batch = {
        'image': self.transform(self.split.get(read), None),
        'label': self.split.labels[read],
        'mask': np.ones(len(read), np.float32),
    }
    missing = len(rows) - len(chosen)
    return {key: np.pad(value[:len(chosen)],
                        [(0, missing)] + [(0, 0)] * (value.ndim - 1))
            if missing else value for key, value in batch.items()}


def evaluation_batches(split: splits.Split, batch_size: int,
                       transform: Callable) -> EvaluationBatches:
  """Returns `EvaluationBatches`; `transform` must be one made for testing."""
  return EvaluationBatches(split, batch_size, transform)


class prefetch:  # noqa: N801 -- an iterator made like map() or zip()
  """Iterates over batches(start), ..., batches(stop - 1), made in advance.

  Background threads call the pure function `batches`, or, for a split that is
  read by grain, worker processes do; order and bytes are those of a plain loop.
  An exception there is raised by the `next` that would have returned its batch.
  To stop early, use a context manager or call `close`.

  Attributes:
    wait_seconds: how long the consumer has waited so far, in total.
  """

  def __init__(self, batches, start, stop, depth=2, workers=None):
    """Starts the threads or processes.

    Args:
      batches: `Batches` or `EvaluationBatches`.
      start: first step.
      stop: one past the last step.
      depth: how many batches to keep ready, at least 1.
      workers: threads, or processes. By default 1, or for images that need
        decoding what `splits.Reading` says (each holds a batch).

    Raises:
      UserError: grain is not installed.
    """
    reading = getattr(getattr(batches, 'split', None), 'reading', None)
    if workers is None:
      workers = reading.count() if reading else 1
    self._stream = None
    if reading and reading.loader == 'grain' and start < stop:
      # One thread takes what the processes have made, in its order.
      self._stream = batches = processes.Stream(batches, start, stop, workers)
      workers = 1
    self.wait_seconds = 0.
    self._batches = batches
    self._steps = iter(range(start, stop))
    self._pool = concurrent.futures.ThreadPoolExecutor(
        workers, thread_name_prefix='batches')
    self._pending = collections.deque()
    for _ in range(max(depth, workers, 1)):
      self._submit()

  def _submit(self):
    for step in self._steps:
      self._pending.append(self._pool.submit(self._batches, step))
      return

  def __iter__(self):
    return self

  def __next__(self):
    if not self._pending:
      self.close()
      raise StopIteration
    began = time.perf_counter()
    try:
      batch = self._pending.popleft().result()
    except BaseException:  # KeyboardInterrupt too must stop the threads
      self.close()
      raise
    finally:
      self.wait_seconds += time.perf_counter() - began
    self._submit()
    return batch

  def close(self) -> None:
    """Drops the batches that are ready and waits for the threads to end."""
    self._steps = iter(())
    self._pending.clear()
    self._pool.shutdown(wait=True, cancel_futures=True)
    if self._stream is not None:
      self._stream.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()
