"""One of several processes that read batches; prints JSON for its test.

  python some_hosts.py PORT PROCESSES PROCESS
"""

import json
import os
import sys

os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=1'
os.environ['JAX_PLATFORMS'] = 'cpu'

import numpy as np  # noqa: E402  after the environment is set

from rome_jax import config, data, hosts, parallel  # noqa: E402
from rome_jax.data import splits  # noqa: E402

BATCH = 8


def read_batches(sharding):
  """(places in the batch that were read, whether all bytes are the whole's)."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 9, 9, 3), np.uint8)
  seen = []

  def read(i):
    seen.append(i)
    return images[i]

  split = splits.LazySplit(read, rng.integers(0, 3, 40, np.int32))
  dataset = data.Dataset('x', split, split, 3, 9, 3, (.5,) * 3, (.25,) * 3)
  batches = data.Batches(split, None, BATCH, 3, data.make_transform(
      'cifar', dataset, train=True, cutout=4))
  step = 7  # of the second epoch
  found = parallel.sharded(batches, sharding, BATCH)(step)
  places = [batches.batch_indices(step).tolist().index(i) for i in seen]
  whole = batches(step)
  equal = all(
      np.array_equal(part.data, whole[name][part.index])
      for name, array in found.items() for part in array.addressable_shards)
  return {'places': places, 'equal': equal,
          'shape': list(found['image'].shape)}


def main():
  port, count, process = map(int, sys.argv[1:])
  options = config.Options(
      distributed=True, coordinator=f'localhost:{port}', processes=count,
      process=process)
  with hosts.joined(options):
    found = {}
    for shape in (count, 1), (1, count):
      mesh = parallel.make_mesh(*shape)
      for name, sharding in (('search', parallel.split_batch(mesh)),
                             ('retraining', parallel.split_over_all(mesh))):
        found[f'{name} {shape[0]}x{shape[1]}'] = read_batches(sharding)
    print(json.dumps(found), file=sys.__stdout__, flush=True)


if __name__ == '__main__':
  main()
