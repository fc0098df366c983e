"""One of several processes, without a network; prints JSON for its test.

  python some_hosts.py read '' PORT PROCESSES PROCESS
  python some_hosts.py train WORKDIR PORT PROCESSES PROCESS
  python some_hosts.py stray WORKDIR PORT PROCESSES PROCESS
"""

import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax import data
from rome_jax.config import command_line
from rome_jax.data import splits
from rome_jax.devices import hosts, interrupt
from rome_jax.devices import mesh as mesh_lib
from rome_jax.train import loop, metrics

BATCH = 8
STEPS = 60
RATE = .05


def vectors(step, rows):
  """A batch of the toy: [len(rows), 3], whole if there are no rows."""
  whole = np.random.default_rng(step).normal(size=(BATCH, 3))
  return whole.astype(np.float32)[slice(None) if rows is None else rows]


def toy_step(state, batch):
  """Gradient descent on mean |w - x|^2 / 2."""
  w = state['w'] - RATE * (state['w'] - batch).mean(0)
  return {'w': w, 'step': state['step'] + 1}, {'loss': (w**2).sum()}


class Slow:
  """Batches that take a while, so that signals come in between."""

  split = None

  def __call__(self, step, rows=None):
    time.sleep(.05)
    return vectors(step, rows)


def train(workdir, start=0.):
  """`loop.run` of the toy from weights `start`: its end, as JSON."""
  workdir = pathlib.Path(workdir)
  mesh = mesh_lib.make_mesh()
  placement = loop.Placement(
      mesh_lib.replicated(mesh), mesh_lib.split_batch(mesh))
  phase = loop.Phase(
      'toy', STEPS, STEPS, BATCH,
      mesh_lib.sharded(Slow(), placement.batch, BATCH),
      lambda state, means, memo: (means, memo))
  state = {'w': jnp.full(3, start), 'step': jnp.zeros((), jnp.int32)}
  batch = phase.batches(0)
  carry = loop.init_carry(toy_step, state, batch, placement=placement)
  program = loop.compile_step(toy_step, carry, batch, placement=placement)
  with interrupt.Interrupt() as stop:
    stop = hosts.agreed(stop)
    writer = (metrics.MetricsWriter(workdir, tensorboard=False)
              if hosts.is_first() else metrics.NoWriter())
    with writer:
      outcome = loop.run(
          phase, program, carry, loop.Settings(workdir, 10, 10, 2), writer,
          stop)
  return {'finished': outcome.finished, 'step': int(outcome.state['step']),
          'w': np.asarray(outcome.state['w']).tolist(),
          'caches': jax.config.jax_enable_compilation_cache}


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
  found = mesh_lib.sharded(batches, sharding, BATCH)(step)
  places = [batches.batch_indices(step).tolist().index(i) for i in seen]
  whole = batches(step)
  equal = all(
      np.array_equal(part.data, whole[name][part.index])
      for name, array in found.items() for part in array.addressable_shards)
  return {'places': places, 'equal': equal,
          'shape': list(found['image'].shape)}


def main():
  what, workdir, *numbers = sys.argv[1:]
  port, count, process = map(int, numbers)
  options = command_line.Options(
      distributed=True, coordinator=f'localhost:{port}', processes=count,
      process=process)
  with hosts.joined(options):
    if what == 'read':
      found = read(count)
    else:  # What strays is not what process 0 holds.
      found = train(workdir, float(process if what == 'stray' else 0))
    print(json.dumps(found), file=sys.__stdout__, flush=True)


def read(count):
  """`read_batches` of meshes along either axis."""
  found = {}
  for shape in (count, 1), (1, count):
    mesh = mesh_lib.make_mesh(*shape)
    for name, sharding in (('search', mesh_lib.split_batch(mesh)),
                           ('retraining', mesh_lib.split_over_all(mesh))):
      found[f'{name} {shape[0]}x{shape[1]}'] = read_batches(sharding)
  return found


if __name__ == '__main__':
  main()
