"""Devices: the mesh, and the search step spread over it.

A mesh has two axes. 'data' cuts each batch into equal parts; 'sample' divides
the K sampled architectures. A search samples the same architectures on any
mesh, and its sums differ only by the order of addition: BatchNorm takes the
statistics of the whole batch (`engine.kernels`), losses and gradients are sums
over 'sample' and means over 'data'.

Everything but the batches is replicated. The samples' part of a step runs
under `jax.shard_map`, each device with its own architectures: `jit` alone
cannot express a switch that takes another branch on each device.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rome_jax import errors
from rome_jax.engine.statistics import BATCH_AXIS as DATA

SAMPLE = 'sample'


def make_mesh(data: int = 0, sample: int = 1) -> Mesh:
  """A mesh of data x sample devices, taken from all processes of the run.

  Args:
    data: parts of a batch; 0: as many as the devices allow.
    sample: groups of devices with architectures of their own.

  Raises:
    UserError: the devices cannot be arranged so.

  >>> make_mesh(data=1).shape['sample']
  1
  """
  devices = jax.devices()
  if sample > len(devices) or (not data and len(devices) % sample):
    raise errors.UserError(
        f'config.mesh.sample={sample} must divide the {len(devices)} devices')
  data = data or len(devices) // sample
  if data * sample > len(devices):
    raise errors.UserError(
        f'config.mesh.data={data} times config.mesh.sample={sample} must be '
        f'at most the {len(devices)} devices')
  if jax.process_count() > 1 and data * sample != len(devices):
    raise errors.UserError(
        f'config.mesh.data={data} times config.mesh.sample={sample} must be '
        f'all {len(devices)} devices of the {jax.process_count()} processes')
  return jax.make_mesh(
      (data, sample), (DATA, SAMPLE), axis_types=(AxisType.Auto,) * 2,
      devices=devices[:data * sample])


def sizes(mesh: Mesh | None) -> tuple[int, int]:
  """(parts of a batch, groups of samples); (1, 1) without a mesh."""
  return (mesh.shape[DATA], mesh.shape[SAMPLE]) if mesh else (1, 1)


def groups(mesh: Mesh | None) -> list[Mesh | None]:
  """A mesh of one group of samples for each group of a mesh.

  What is run on them at the same time must not wait for each other.
  """
  if mesh is None:
    return [None]
  return [Mesh(mesh.devices[:, i:i + 1], mesh.axis_names,
               axis_types=(AxisType.Auto,) * 2)
          for i in range(mesh.shape[SAMPLE])]


def spread(mesh: Mesh | None) -> Callable[[Callable], Callable]:
  """A wrapper that runs a sum over samples on a mesh.

  Args:
    mesh: None for one device, where functions stay as they are.

  Returns:
    wrap(f) for f(samples, shared, batch), which sums means over the batch
    over the leading axis of `samples`; every device has the same result.
  """

  def wrap(function):

    def part(samples, shared, batch):
      total = lax.psum(function(samples, shared, batch), SAMPLE)
      return lax.pmean(total, DATA)

    # Without check_vma: with it, the gradient of a switch whose number varies
    # over an axis is wrong for replicated weights (jax-ml/jax#40823).
    return jax.shard_map(
        part, mesh=mesh, in_specs=(P(SAMPLE), P(), P(DATA)), out_specs=P(),
        check_vma=False)

  return (lambda function: function) if mesh is None else wrap


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of state: a copy on every device."""
  return NamedSharding(mesh, P())


def split_batch(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch in the search: its images over 'data'."""
  return NamedSharding(mesh, P(DATA))


def split_over_all(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch in retraining: its images over every device."""
  return NamedSharding(mesh, P((DATA, SAMPLE)))


class ShardedBatches(NamedTuple):
  """Batches as global arrays; each process reads only its own rows.

  Attributes:
    batches: (step, rows) -> pytree of arrays [len(rows), ...], pure; `rows`
      are places in the batch.
    sharding: of a batch.
    size: of a batch.
  """

  batches: Any
  sharding: NamedSharding
  size: int

  @property
  def split(self) -> Any:
    """The split that is read; tells `data.prefetch` how to read ahead."""
    return self.batches.split

  def __len__(self):
    return len(self.batches)

  def weighted(self, weights: np.ndarray) -> 'ShardedBatches':
    """The same batches, drawn by other weights; see `data.Batches`."""
    return self._replace(batches=self.batches.weighted(weights))

  @property
  def host(self) -> 'LocalBatches':
    """What makes the rows of this process; knows of no device."""
    return LocalBatches(self.batches, local_rows(self.sharding, self.size))

  def placed(self, tree: Any) -> Any:
    """Global arrays of what `host` has made."""
    return from_rows(tree, local_rows(self.sharding, self.size), self.size,
                     self.sharding)

  def __call__(self, step):
    return self.placed(self.host(step))


class LocalBatches(NamedTuple):
  """The rows of each batch that one process has; see `ShardedBatches`."""

  batches: Any
  rows: np.ndarray

  def __call__(self, step):
    return self.batches(step, self.rows)


def sharded(batches: Any, sharding: NamedSharding | None, size: int) -> Any:
  """`ShardedBatches`; without a sharding the batches as they are."""
  return batches if sharding is None else ShardedBatches(
      batches, sharding, size)


@functools.lru_cache(maxsize=8)  # Each batch asks for them twice.
def local_rows(sharding: NamedSharding, size: int) -> np.ndarray:
  """The rows of a batch that devices of this process hold, sorted."""
  places = sharding.addressable_devices_indices_map((size,)).values()
  rows = np.unique(np.concatenate(
      [np.arange(size)[index] for index in places]))
  rows.setflags(write=False)
  return rows


def from_rows(tree: Any, rows: np.ndarray, size: int,
              sharding: NamedSharding) -> Any:
  """Global arrays, made of the rows that each process has.

  Args:
    tree: pytree of arrays [len(rows), ...].
    rows: `local_rows`.
    size: of the whole first axis.
    sharding: of every leaf; over the first axis only.
  """

  def put(leaf):

    def part(index):
      start, stop, _ = index[0].indices(size)
      return leaf[slice(*np.searchsorted(rows, (start, stop)))]

    return jax.make_array_from_callback(
        (size, *leaf.shape[1:]), sharding, part)

  return jax.tree.map(put, tree)


def place(tree: Any, sharding: NamedSharding) -> Any:
  """Global arrays from host arrays that every process holds whole.

  Args:
    tree: pytree of arrays.
    sharding: of every leaf.
  """

  def put(leaf):
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(
        leaf.shape, sharding, lambda index: leaf[index])

  return jax.tree.map(put, tree)
