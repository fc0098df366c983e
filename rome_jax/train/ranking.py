"""Scores many architectures with the weights of one supernet.

One compiled program scores a block of them. On a mesh each device has its
share of a block and sees whole batches, so that scores do not depend on the
mesh.
"""

import copy
import functools
import hashlib
import io
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from rome_jax import data, errors, families, files
from rome_jax.devices import mesh as mesh_lib
from rome_jax.engine import statistics
from rome_jax.spaces import Space
from rome_jax.spaces.genotypes import Genotype
from rome_jax.train import metrics, optim

NORMS = ('batch', 'recalibrated')
BLOCK = 64
# The mesh axis over which a block is spread. It must not be that of batches,
# which BatchNorm looks for.
_AXIS = 'architectures'

Batch = Mapping[str, Any]
Arch = Genotype | Mapping[str, Any]  # or {cell type: CellArch}


class Scores(NamedTuple):
  """What `rank` found of N architectures, in their order.

  Attributes:
    accuracy: [N] shares of the images that are classified correctly.
    loss: [N] mean cross entropies in nats.
    rate: architectures per second without compilation; nan if none was left
      to score.
  """

  accuracy: np.ndarray
  loss: np.ndarray
  rate: float = math.nan


class Record(NamedTuple):
  """A file of scores, in which the same call finds those of its blocks.

  Attributes:
    path: JSON lines: the settings, then a block of scores each.
    settings: what scores depend on besides the architectures, a JSON object.
  """

  path: pathlib.Path
  settings: Mapping[str, Any]


class FirstBatches:
  """The first batches of a stream, read ahead; may be iterated repeatedly."""

  def __init__(self, batches: Any, number: int):
    """Stores a function of the step, such as `data.Batches`, and how many."""
    self._batches, self._number = batches, number

  def __iter__(self) -> Iterator[Batch]:
    with data.prefetch(self._batches, 0, self._number) as found:
      yield from found


def rank(network: Any, theta: Any, found: Sequence[Arch],
         batches: Iterable[Batch], *, norm: str = 'batch',
         calibration: Any = None, block: int = BLOCK,
         dtype: str = 'float32', mesh: Mesh | None = None,
         record: Record | None = None, progress: bool = False,
         stop: Any = None) -> Scores:
  """Scores architectures with the weights of a supernet.

  Args:
    network, theta, batches, norm, calibration, dtype, mesh: see `Scorer`.
    found: N genotypes of the network's space, or {cell type: CellArch} each.
    block: architectures in a call of the program; the last block is padded,
      and on a mesh blocks are multiples of its devices.
    record, progress, stop: see `Scorer.__call__`.

  Returns:
    Scores; of fewer than N if `stop` was requested.

  Raises:
    UserError: an unknown norm or images missing for it, an architecture that
      is none of the space, or a record of something else.
    ValueError: there are no batches, or one is padded.

  >>> import optax, rome_jax as rj
  >>> space = rj.spaces.S2.restrict(num_nodes=1)
  >>> net = rj.supernet(space, rj.Sizes(cells=1, channels=4, num_classes=3,
  ...                                   image_size=8))
  >>> theta = rj.init('spos', net, optax.sgd(.1), optax.sgd(.1)).theta
  >>> rng = np.random.default_rng(0)
  >>> found = [rj.genotypes.random(space, rng) for _ in range(3)]
  >>> batch = {'image': np.ones((2, 8, 8, 3)), 'label': np.zeros(2, int)}
  >>> rj.rank(net, theta, found, [batch]).accuracy.shape
  (3,)
  """
  scorer = Scorer(
      network, theta, batches, norm=norm, calibration=calibration,
      block=min(block, max(len(found), 1)), dtype=dtype, mesh=mesh)
  return scorer(found, record=record, progress=progress, stop=stop)


class Scorer:
  """Scores architectures; compiles at the first block and never again.

  Attributes:
    space: of the supernet.
  """

  def __init__(self, network: Any, theta: Any, batches: Iterable[Batch], *,
               norm: str = 'batch', calibration: Any = None,
               block: int = BLOCK, dtype: str = 'float32',
               mesh: Mesh | None = None):
    """Checks the arguments and puts the weights on the devices.

    Args:
      network: the supernet.
      theta: its weights.
      batches: of {'image': [B,H,W,C] normalised floats, 'label': [B]}, all of
        one size; iterated once for each block.
      norm: where BatchNorm's mean and variance are from. 'batch': from each
        batch, as in training. 'recalibrated': from the images in
        `calibration`, anew for every architecture (Guo et al., ECCV 2020);
        then no image's prediction depends on the others of its batch.
      calibration: [n,H,W,C] training images. They run as one batch beside
        each of `batches` and cost as much as n more images in it.
      block, dtype: architectures in a call of the program; of the
        activations.
      mesh: devices to spread a block over; None for one.

    Raises:
      UserError: an unknown norm, or images missing for it.
    """
    self._calibration = _calibration(norm, calibration)
    self.space: Space = network.space
    self._batches, self._mesh = batches, mesh
    devices = 1 if mesh is None else mesh.size
    self._block = -(-block // devices) * devices
    calibrated = 0 if calibration is None else len(calibration)
    self._function = jax.jit(make_program(network, calibrated, dtype, mesh))
    self._theta = self._put(jax.tree.map(jnp.asarray, theta))
    # Shared with copies that have other weights.
    self._compiled: dict[str, Any] = {}
    self._seconds = 0.  # without compilation

  def __call__(self, found: Sequence[Arch], *, record: Record | None = None,
               progress: bool = False, stop: Any = None) -> Scores:
    """Scores N architectures.

    Args:
      found: genotypes of the space, or {cell type: CellArch} of each.
      record: where to keep the scores of finished blocks.
      progress: whether to show a bar on stderr.
      stop: an object whose `requested` ends it after a block.

    Returns:
      Scores; of fewer than N if `stop` was requested.

    Raises:
      UserError, ValueError: as `rank`.
    """
    rows, began = _known(record, found, self.space), self._seconds
    first = start = sum(map(len, rows))
    with metrics.Progress(
        len(found), unit='cell', label='rank', initial=start,
        stream=None if progress else io.StringIO()) as bar:
      while start < len(found) and not getattr(stop, 'requested', False):
        part = found[start:start + self._block]
        rows.append(self._scores_of(part)[:len(part)])
        if record is not None:
          _append(record.path, rows[-1])
        start += len(part)
        bar.update(start)
    scores = np.concatenate([np.zeros((0, 2)), *rows])
    seconds = self._seconds - began
    return Scores(scores[:, 0], scores[:, 1],
                  (start - first) / seconds if seconds else math.nan)

  def with_weights(self, theta: Any) -> 'Scorer':
    """The same for other weights of the supernet; nothing compiles anew."""
    other = copy.copy(self)
    other._theta = self._put(jax.tree.map(jnp.asarray, theta))
    return other

  def _scores_of(self, part):
    """[block,2] of a block, means over all batches."""
    total, number = np.zeros(()), 0
    cells = self._put(_stacked(part, self.space, self._block))
    for step, batch in enumerate(self._batches):
      args = (self._theta, cells, *self._put(self._arrays(batch, step)))
      if not self._compiled:
        self._compiled['program'] = self._function.lower(*args).compile()
      program = self._compiled['program']
      began = time.perf_counter()
      total = total + np.asarray(program(*args), np.float64)
      self._seconds += time.perf_counter() - began
      number += 1
    if not number:
      raise ValueError('batches is empty')
    return total / number

  def _arrays(self, batch, step):
    """(images, labels, key data)."""
    if not np.all(batch.get('mask', 1)):
      raise ValueError('a batch is padded, which would change the statistics '
                       'of BatchNorm; give whole batches')
    images = batch['image']
    if self._calibration is not None:
      images = np.concatenate([self._calibration, images])
    key = jax.random.fold_in(jax.random.key(0), step)
    return images, batch['label'], np.asarray(jax.random.key_data(key))

  def _put(self, tree):
    if self._mesh is None:
      return tree
    return mesh_lib.place(tree, mesh_lib.replicated(_line(self._mesh)))


def _calibration(norm, images):
  """The images that measure BatchNorm's moments; None: those of each batch."""
  if norm == 'running':
    raise errors.UserError(
        "norm='running' must be batch or recalibrated: a supernet keeps no "
        'running statistics, since a mean over all its paths fits none of '
        'them')
  if norm not in NORMS:
    raise errors.UserError(
        f'norm={norm!r} must be one of {", ".join(NORMS)}'
        f'{errors.near_miss(norm, NORMS)}')
  if (images is None) == (norm == 'recalibrated'):
    raise errors.UserError(
        f'calibration must be images with norm=recalibrated and None with '
        f'norm=batch; norm={norm!r}')
  return images


def _stacked(found, space, size):
  """{cell type: CellArch} with a leading axis of `size`, the last repeated."""
  cells = [families.arch_of(arch, space, fewer_edges=True)
           if isinstance(arch, Genotype) else arch for arch in found]
  cells += cells[-1:] * (size - len(cells))
  return jax.tree.map(lambda *leaves: np.stack(leaves), *cells)


# --- The program


def make_program(network: Any, calibrated: int = 0, dtype: str = 'float32',
                 mesh: Mesh | None = None) -> Callable[..., jax.Array]:
  """Builds the function that scores a block on a batch; jit it.

  Args:
    network: the supernet.
    calibrated: how many of the first images measure BatchNorm's moments and
      are not scored; 0: all measure and all are scored.
    dtype: of the activations.
    mesh: devices to spread the block over.

  Returns:
    (theta, cells, images, labels, key data) -> [K,2] accuracy and loss, means
    over the batch; leaves of `cells` have a leading axis of K, `images` are
    [calibrated + B,H,W,C], `labels` [B].
  """

  def of_one(theta, images, labels, key, cell):
    logits = network.apply(
        {'params': theta}, images.astype(dtype), cell,
        rngs={'noise': jax.random.wrap_key_data(key)})[calibrated:]
    return jnp.stack([optim.correct(logits, labels).mean(),
                      optim.cross_entropy(logits, labels).mean()])

  one = of_one if not calibrated else (
      statistics.measured_on(calibrated, of_one))

  def score(theta, cells, images, labels, key):
    scores = lax.map(
        functools.partial(one, theta, images, labels, key), cells)
    return scores if mesh is None else lax.all_gather(
        scores, _AXIS, tiled=True)

  if mesh is None:
    return score
  return jax.shard_map(
      score, mesh=_line(mesh), in_specs=(P(), P(_AXIS), P(), P(), P()),
      out_specs=P(), check_vma=False)


def _line(mesh):
  """The devices of a mesh in a row."""
  return Mesh(mesh.devices.reshape(-1), (_AXIS,), axis_types=(AxisType.Auto,))


# --- The record


def _known(record, found, space):
  """The blocks [n,2] in a record, which is begun if it is not there.

  A last line that was cut is removed.
  """
  if record is None:
    return []
  text = json.dumps([
      jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), arch)
      for arch in found])
  settings = {
      'space': space.name, **record.settings, 'cells': len(found),
      'digest': hashlib.sha256(text.encode()).hexdigest()}
  lines = _lines(record.path) or [settings]
  for name in {**settings, **lines[0]}:
    if settings.get(name) != lines[0].get(name):
      raise errors.UserError(
          f'{record.path} holds another ranking ({name}='
          f'{lines[0].get(name)!r}, not {settings.get(name)!r}); delete it or '
          'use another file')
  files.write_text(
      record.path, ''.join(json.dumps(line) + '\n' for line in lines))
  return [np.array(line, np.float64) for line in lines[1:]]


def _lines(path):
  """The JSON values of a record, up to the first line that is none."""
  values = []
  for line in files.read_bytes(path, missing=b'').splitlines():
    try:
      values.append(json.loads(line))
    except (ValueError, RecursionError):
      break
  return values


def _append(path, rows):
  """Adds a block to a record; a reader sees it whole or not at all."""
  try:
    with files.open_own(path, 'ab') as file:
      file.write(json.dumps(rows.tolist()).encode() + b'\n')
      file.flush()
      os.fsync(file.fileno())
  except OSError as error:
    raise errors.UserError(
        f'cannot write {path}: {error.strerror}') from error
