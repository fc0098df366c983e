"""Devices: the mesh, and the search step spread over it.

A mesh has two axes. Over 'data' each batch is cut into equal parts; over
'sample' the K sampled architectures are. A search on any mesh samples the
same architectures, and its sums differ by the order of addition only:
statistics of BatchNorm are those of the whole batch (`kernels`), losses and
gradients are sums over 'sample' and means over 'data'.

Everything but the batches is replicated. The samples' part of a step runs
under `jax.shard_map`, each device with its own architectures; a switch whose
number differs between devices is something that `jit` alone cannot express.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rome_jax import errors
from rome_jax.engine.kernels import BATCH_AXIS as DATA

SAMPLE = 'sample'


def make_mesh(data: int = 0, sample: int = 1) -> Mesh:
  """A mesh of data x sample devices of this run, all processes' devices.

  Args:
    data: parts of a batch; 0: as many as the devices give.
    sample: groups of devices with architectures of their own.

  Raises:
    UserError: the devices cannot be arranged so.
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


def from_config(config) -> Mesh | None:
  """The mesh that a config asks for; None where it has one device.

  Raises:
    UserError: the devices cannot be arranged so, or K or a batch cannot be
      cut evenly (nothing is padded: that would change the sums).
  """
  mesh = make_mesh(config.mesh.data, config.mesh.sample)
  if mesh.size == 1:
    return None
  searches = not config.genotype
  retrains = config.retrain.seeds or config.retrain.random_architectures
  shape = (f'a mesh of config.mesh.data={mesh.shape[DATA]} by '
           f'config.mesh.sample={mesh.shape[SAMPLE]} devices')
  if searches and config.search.k % mesh.shape[SAMPLE]:
    raise errors.UserError(
        f'config.search.k={config.search.k} must be a multiple of '
        f'{mesh.shape[SAMPLE]} on {shape}')
  for used, name, devices in ((searches, 'search', mesh.shape[DATA]),
                              (retrains, 'retrain', mesh.size)):
    size, accumulate = config[name].batch_size, config[name].accumulate
    if used and size % (devices * accumulate):
      also = (f' with config.{name}.accumulate={accumulate}'
              if accumulate > 1 else '')
      raise errors.UserError(
          f'config.{name}.batch_size={size} must be a multiple of '
          f'{devices * accumulate} on {shape}{also}')
  return mesh


def sizes(mesh: Mesh | None) -> tuple[int, int]:
  """(parts of a batch, groups of samples); (1, 1) without a mesh."""
  return (mesh.shape[DATA], mesh.shape[SAMPLE]) if mesh else (1, 1)


def spread(mesh: Mesh | None):
  """A wrapper that runs a sum over samples on a mesh.

  Args:
    mesh: None for one device, where functions stay as they are.

  Returns:
    wrap(f) of f(samples, shared, batch) -> a sum over the leading axis of
    `samples` of means over the batch; with the same result on every device.
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
  """Batches as global arrays, of which a process reads only its own rows.

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
  def split(self):
    """The split that is read; tells `data.prefetch` how to read ahead."""
    return self.batches.split

  def __len__(self):
    return len(self.batches)

  def __call__(self, step):
    rows = local_rows(self.sharding, self.size)
    return from_rows(
        self.batches(step, rows), rows, self.size, self.sharding)


def sharded(batches, sharding: NamedSharding | None, size: int):
  """`ShardedBatches`; without a sharding the batches as they are."""
  return batches if sharding is None else ShardedBatches(
      batches, sharding, size)


def local_rows(sharding: NamedSharding, size: int) -> np.ndarray:
  """The rows of a batch that devices of this process hold, sorted."""
  places = sharding.addressable_devices_indices_map((size,)).values()
  return np.unique(np.concatenate(
      [np.arange(size)[index] for index in places]))


def from_rows(tree: Any, rows: np.ndarray, size: int,
              sharding: NamedSharding) -> Any:
  """Global arrays of whose first axis each process has its own rows.

  Args:
    tree: pytree of arrays [len(rows), ...].
    rows: `local_rows`.
    size: of the first axis of the whole.
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
  """Host arrays that every process holds whole, as global arrays.

  Args:
    tree: pytree of arrays.
    sharding: of every leaf.
  """

  def put(leaf):
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(
        leaf.shape, sharding, lambda index: leaf[index])

  return jax.tree.map(put, tree)
