"""Tells what a run will cost before its first step; refuses what cannot fit.

Memory is XLA's own figure for the compiled program. Time is that of one step on
a copy of the state. Before compiling there is only an estimate, which decides
`search.samples='auto'`.
"""

import contextlib
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rome_jax import data, errors
from rome_jax.data import splits
from rome_jax.devices import hosts
from rome_jax.train import loop


class Cost(NamedTuple):
  """The cost of one phase.

  Attributes:
    name: of the phase.
    steps: in all.
    compile_seconds: time for tracing and compiling.
    needed_bytes: arguments, results and temporary memory of the program on
      one device; None if the backend does not say.
    available_bytes: free memory of that device; None if unknown.
    step_seconds: time of one step, without waiting for data.
    way: how the K samples of a search are evaluated; '' in a retraining.
  """

  name: str
  steps: int
  compile_seconds: float
  needed_bytes: int | None
  available_bytes: int | None
  step_seconds: float
  way: str = ''

  def __str__(self):
    memory = _gigabytes(self.needed_bytes)
    if self.available_bytes is not None:
      memory += f' of {_gigabytes(self.available_bytes)}'
    way = f' ({self.way} over K)' if self.way else ''
    return (
        f'{self.name}{way}: compiled in {self.compile_seconds:.0f} s; memory '
        f'{memory}; {self.steps:,} steps of {1e3 * self.step_seconds:.0f} ms, '
        f'about {_duration(self.steps * self.step_seconds)} without tests')


def available_bytes() -> int | None:
  """Returns the free memory of the first device; None if unknown."""
  device = jax.local_devices()[0]
  if device.platform == 'cpu':
    return host_bytes()
  stats = device.memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats.get('bytes_in_use', 0)


def host_bytes() -> int | None:
  """Returns the free memory of this machine; None if unknown."""
  with contextlib.suppress(OSError):
    text = pathlib.Path('/proc/meminfo').read_text()
    if found := re.search(r'MemAvailable:\s*(\d+) kB', text):
      return int(found[1]) * 1024
  with contextlib.suppress(ValueError, OSError, AttributeError):
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return None


def accelerator_bytes() -> int | None:
  """Returns all memory of the first device; None on a CPU or if unknown."""
  device = jax.local_devices()[0]
  if device.platform == 'cpu':
    return None
  return (device.memory_stats() or {}).get('bytes_limit')


# ---------------------------------------------------- before it is compiled

# The K samples of 'vmap' may take at most this share of the memory.
VMAP_SHARE = .5
# Memory of one sample relative to what its forward pass keeps; the table is in
# docs/precision.md.
KEPT_FACTOR = 2.6

# Temporary memory relative to that without the setting. bfloat16: measured on a
# CPU, which emulates it. Recomputation: not measured, since XLA undoes it on a
# CPU, but the forward pass keeps a tenth (docs/precision.md).
BFLOAT16_FACTOR = .9
REMAT_FACTOR = .5


def image_bytes(loss: Callable, theta: Any, shape: tuple[int, ...]) -> int:
  """Estimates the memory of loss and gradient for one image of one sample.

  The estimate is KEPT_FACTOR times what the forward pass keeps for the backward
  pass, which is known exactly without compiling.

  Args:
    loss: (theta, images) -> scalar.
    theta: an example of the weights.
    shape: shape of an image.
  """

  def kept(count):
    images = jax.ShapeDtypeStruct((count, *shape), jnp.float32)
    pull = jax.eval_shape(
        lambda theta, images: jax.vjp(
            lambda theta: loss(theta, images), theta)[1], theta, images)
    return sum(leaf.size * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(pull))

  # The difference cancels the weights, which are kept once.
  return int(KEPT_FACTOR * (kept(2) - kept(1)))


def samples(k: int, sample_bytes: int, total_bytes: int | None) -> str:
  """Decides `search.samples='auto'`: returns 'scan' or 'vmap'.

  On a CPU it is 'scan', as batching saves no time there and takes K times the
  memory. On an accelerator it is 'vmap' if the K samples fit into VMAP_SHARE of
  the memory, as fewer and larger operations keep the device busier; else
  'scan'. The total memory counts, not the free memory, so that a resumed run
  makes the same choice.

  Args:
    k: samples that a device evaluates.
    sample_bytes: memory of one of them, see `image_bytes`.
    total_bytes: memory of the device; None on a CPU or if unknown.

  >>> samples(7, 10**9, 80 * 10**9), samples(7, 10**10, 80 * 10**9)
  ('vmap', 'scan')
  """
  fits = total_bytes is not None and k * sample_bytes <= (
      VMAP_SHARE * total_bytes)
  return 'vmap' if fits else 'scan'


# Bytes per number of a batch: three copies as float32, two ready and one used.
BATCH_BYTES = 12
# Images decoded into memory are there twice while they are stacked.
DECODED_BYTES = 2


def check_data(count: int, image_size: int, channels: int, batches: int,
               batch_size: int, section: str, decoded: bool) -> None:
  """Refuses images that do not fit into this machine, before one is read.

  Args:
    count: images of the data set.
    image_size: their side in pixels, once they are scaled.
    channels: 1 or 3.
    batches: how many a step reads.
    batch_size: images of one.
    section: of the config, where the batch size is from.
    decoded: whether all images are kept in memory.

  Raises:
    UserError: they need more memory than is free; the message has settings
      that would fit.
  """
  available = host_bytes()

  def needed(side, size):
    copies = BATCH_BYTES * batches * size + DECODED_BYTES * decoded * count
    return side**2 * channels * copies

  if available is None or needed(image_size, batch_size) <= available:
    return
  # A tenth is kept back for what the estimate does not know.
  limit = .9 * available
  fits = []
  if side := next((n for n in range(image_size - 1, 7, -1)
                   if needed(n, batch_size) <= limit), None):
    fits.append(f'config.image_size={side}')
  if size := next((n for n in range(batch_size - 1, 0, -1)
                   if needed(image_size, n) <= limit), None):
    fits.append(f'config.{section}.batch_size={size}')
  hint = (f'by estimate one of these makes them fit: {", ".join(fits)}'
          if fits else 'no smaller image or batch is enough')
  raise errors.UserError(
      f'images of {image_size} x {image_size} x {channels} need '
      f'{_gigabytes(needed(image_size, batch_size))} of memory in batches of '
      f'config.{section}.batch_size={batch_size}, but '
      f'{_gigabytes(available)} are free; {hint}')


def check_file(path: str | os.PathLike, needed: int) -> None:
  """Refuses a file of arrays that does not fit into this machine.

  Args:
    path: the file, for the message.
    needed: bytes of its arrays.

  Raises:
    UserError: they need more memory than is free.
  """
  available = host_bytes()
  if available is not None and needed > available:
    raise errors.UserError(
        f'the arrays of {path} need {_gigabytes(needed)} of memory, but '
        f'{_gigabytes(available)} are free; store fewer or smaller images, or '
        "a folder of image files, which config.dataset='folder' reads when "
        'they are used')


# ----------------------------------------------------- when it is compiled


class Size(NamedTuple):
  """What determines the memory of a program.

  Attributes:
    section: section of the config, 'search' or 'retrain'.
    batch_size, accumulate, dtype, channels, remat: fields of that section.
    image_size: side of the images in pixels.
    data_parts: number of devices that share a batch.
    groups: number of devices that share the K samples.
    k: samples of a step.
    way: how they are evaluated.
  """

  section: str
  batch_size: int
  accumulate: int
  dtype: str
  channels: int
  image_size: int
  data_parts: int = 1
  groups: int = 1
  k: int = 1
  way: str = ''
  remat: str = ''


def smaller_settings(size: Size, share: float) -> list[str]:
  """Returns the three gentlest settings that make a program fit.

  An estimate: temporary memory is taken as proportional to the images of one
  part, the channels, the bytes of an activation and, with 'vmap', the samples.

  Args:
    size: of the program.
    share: available share of its temporary memory.

  Returns:
    FIELD=VALUE each; a setting that is not enough alone is marked.
  """
  found = [(setting, factor <= share)
           for setting, factor in _candidates(size, share)]
  found.sort(key=lambda pair: not pair[1])  # stable
  return [setting if enough else f'{setting} (not enough alone)'
          for setting, enough in found[:3]]


def _candidates(size, share):
  """Returns [(setting, factor of temporary memory)], gentlest first."""
  field = f'config.{size.section}'
  found = []
  if size.way == 'vmap' and size.k > size.groups:
    found.append((f"{field}.samples='scan'", size.groups / size.k))
  if size.remat == 'none' and jax.default_backend() != 'cpu':
    found.append((f"{field}.remat='cells'", REMAT_FACTOR))
  if size.dtype == 'float32':
    found.append((f"{field}.dtype='bfloat16'", BFLOAT16_FACTOR))
  part = size.batch_size // size.data_parts
  parts = [n for n in range(size.accumulate + 1, part + 1) if part % n == 0]
  if parts:
    n = _first(parts, lambda n: size.accumulate / n <= share)
    found.append((f'{field}.accumulate={n}', size.accumulate / n))
  step = size.data_parts * size.accumulate
  batches = range(size.batch_size - step, 0, -step)
  if batches:
    n = _first(batches, lambda n: n / size.batch_size <= share)
    found.append((f'{field}.batch_size={n}', n / size.batch_size))
  # Even numbers: the ImageNet stem and reductions halve the channels.
  widths = range((size.channels - 1) // 2 * 2, 0, -2)
  if widths:
    n = _first(widths, lambda n: n / size.channels <= share)
    found.append((f'{field}.channels={n}', n / size.channels))
  sides = range(size.image_size - 1, 7, -1)
  if sides:
    n = _first(sides, lambda n: (n / size.image_size)**2 <= share)
    found.append(
        (f'config.image_size={n}', (n / size.image_size)**2))
  return found


def _first(values, enough):
  """Returns the first value that is enough, else the last."""
  return next(filter(enough, values), values[-1])


def check_memory(name: str, program: loop.Program, size: Size) -> None:
  """Refuses a program that does not fit into memory.

  Args:
    name: of the phase.
    program: the compiled step.
    size: what determines its memory.

  Raises:
    UserError: it needs more memory than is available; the message names
      three settings that would make it fit.
  """
  available = available_bytes()
  if None in (available, program.needed_bytes) or (
      program.needed_bytes <= available):
    return
  fixed = program.needed_bytes - program.temp_bytes
  # Keep a tenth in reserve: the estimate is rough.
  share = .9 * (available - fixed) / program.temp_bytes
  raise errors.UserError(
      f'{name} needs {_gigabytes(program.needed_bytes)} of memory, but '
      f'{_gigabytes(available)} are free; by estimate one of these makes it '
      f'fit: {", ".join(smaller_settings(size, share))}')


def cost(phase: loop.Phase, program: loop.Program, carry: Any, batch: Any,
         way: str = '') -> Cost:
  """Measures one step on a copy of the carry and returns the cost."""
  available = available_bytes()

  def seconds():
    copy = jax.block_until_ready(jax.tree.map(jnp.copy, carry))
    began = time.perf_counter()
    jax.block_until_ready(program.call(copy, batch))
    return time.perf_counter() - began

  once = seconds()
  # Overhead dominates the first call of a quick step, so time it again. All
  # processes must agree, or they would wait for each other.
  again = hosts.from_first(lambda: once < 1)
  return Cost(phase.name, phase.steps, program.compile_seconds,
              program.needed_bytes, available,
              seconds() if again else once, way)


def announce(what: str, phase: loop.Phase, program: loop.Program, carry: Any,
             batch: Any, size: Size) -> None:
  """Checks that a program fits and prints its cost on stderr, in one line.

  Args:
    what, size: the name and size for `check_memory`.
    phase, program, carry, batch: as for `cost`.

  Raises:
    UserError: see `check_memory`.
  """
  check_memory(what, program, size)
  print(cost(phase, program, carry, batch, size.way), file=sys.stderr,
        flush=True)


_LOADING = 3.  # seconds of loading that are measured, at least


def loading(phase: loop.Phase) -> str:
  """Says how fast the images of a phase are read if nothing else is done."""
  reading = getattr(phase.batches.split, 'reading', splits.Reading())
  # Those who read begin, and end, their batches at about the same time.
  round_of = reading.count()
  with data.prefetch(phase.batches, 0, loop.MOST_STEPS) as ahead:
    for _ in range(2 * round_of):  # What is ready when the clock starts.
      batch = next(ahead)
    images = sum(leaf.shape[0] for leaf in jax.tree.leaves(batch)
                 if leaf.ndim == 4)
    began, count, seconds = time.perf_counter(), 0, 0.
    while seconds < _LOADING or count % round_of:
      next(ahead)
      count, seconds = count + 1, time.perf_counter() - began
  return (f'{phase.name}: loading alone takes {1e3 * seconds / count:.0f} ms a '
          f'step, {count * images / seconds:,.0f} images/s')


def _gigabytes(count):
  return 'unknown' if count is None else f'{count / 1e9:.2f} GB'


def _duration(seconds):
  minutes = round(seconds / 60)
  if minutes < 2:
    return f'{seconds:.0f} s'
  return f'{minutes} min' if minutes < 120 else f'{minutes / 60:.1f} h'
