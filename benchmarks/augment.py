"""Where to augment: NumPy on the host against jitted JAX on the device.

  python -m benchmarks.augment [--json] [--repeats=200]

Both make the same training batch for CIFAR (crop out of 4 pixels of padding,
flip, normalise, cutout 16) out of uint8 images in host memory and end with
it on the device, with nothing else running. In training, `data.prefetch` makes
host batches in the background, so their time shows as input wait only where
it exceeds a step's.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax import data
from rome_jax.data import sources

_IMAGES = 10_000
_PAD, _CUTOUT = 4, 16


def make_dataset(seed=0):
  """Random images of CIFAR's shape with CIFAR-10's statistics."""
  rng = np.random.default_rng(seed)
  split = data.ArraySplit(
      rng.integers(0, 256, (_IMAGES, 32, 32, 3), np.uint8),
      rng.integers(0, 10, _IMAGES).astype(np.int32))
  mean, std = sources.STATISTICS['cifar10']
  return data.Dataset('random', split, split, 10, 32, 3, mean, std)


def host_batches(dataset, batch_size):
  """step -> the batch as the package makes it, put on the device."""
  transform = data.make_transform('cifar', dataset, True, cutout=_CUTOUT)
  batches = data.Batches(dataset.train, None, batch_size, 0, transform)
  return lambda step: jax.device_put(batches(step))


def device_batches(dataset, batch_size):
  """step -> uint8 images put on the device and augmented there."""
  batches = data.Batches(dataset.train, None, batch_size, 0, None)
  mean, std = jnp.array(dataset.mean), jnp.array(dataset.std)
  key = jax.random.key(0)

  def one(image, key):
    crop, mirror, centre = jax.random.split(key, 3)
    y, x = jax.random.randint(crop, (2,), 0, 2 * _PAD + 1)
    image = jnp.pad(image, ((_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    image = jax.lax.dynamic_slice(image, (y, x, 0), (32, 32, 3))
    image = jnp.where(jax.random.bernoulli(mirror), image[:, ::-1], image)
    image = (image / 255 - mean) / std
    cy, cx = jax.random.randint(centre, (2,), 0, 32)
    rows, columns = jnp.arange(32)[:, None], jnp.arange(32)
    half = _CUTOUT // 2
    cut = ((rows >= cy - half) & (rows < cy + half)
           & (columns >= cx - half) & (columns < cx + half))
    return jnp.where(cut[:, :, None], 0, image)

  @jax.jit
  def augment(images, step):
    keys = jax.random.split(jax.random.fold_in(key, step), batch_size)
    return jax.vmap(one)(images, keys)

  def make(step):
    chosen = batches.batch_indices(step)
    images, labels = jax.device_put(
        (dataset.train.get(chosen), dataset.train.labels[chosen]))
    return {'image': augment(images, step), 'label': labels}
  return make


def time_alone(make, repeats):
  """Median milliseconds of making one batch, ready on the device."""
  jax.block_until_ready(make(0))
  return 1e3 * statistics.median(
      _seconds(lambda step=step: make(step)) for step in range(repeats))


def _seconds(f):
  began = time.perf_counter()
  jax.block_until_ready(f())
  return time.perf_counter() - began


def run(batch_sizes=(64, 96), repeats=200):
  """Rows of where, backend, batch, batch_ms (median) and images_per_second."""
  dataset = make_dataset()
  rows = []
  for batch_size in batch_sizes:
    for where, maker in (('host', host_batches), ('device', device_batches)):
      batch_ms = time_alone(maker(dataset, batch_size), repeats)
      rows.append({
          'where': where, 'backend': jax.default_backend(),
          'batch': batch_size, 'batch_ms': batch_ms,
          'images_per_second': 1e3 * batch_size / batch_ms})
  return rows


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--json', action='store_true', help='print JSON')
  parser.add_argument('--repeats', type=int, default=200)
  args = parser.parse_args()
  rows = run(repeats=args.repeats)
  if args.json:
    print(json.dumps(rows, indent=2))
    return
  for row in rows:
    print('{where:7} {backend:4} batch {batch:4d}  {batch_ms:7.3f} ms  '
          '{images_per_second:9.0f} images/s'.format(**row))


if __name__ == '__main__':
  main()
