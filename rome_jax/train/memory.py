"""What a run will cost, said before its first step, and refused if too much.

Memory is that of the compiled program (XLA's own figures), time that of one
step on a copy of the state. Before anything is compiled there is an estimate
only, by which `search.samples='auto'` is decided.
"""

import contextlib
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rome_jax import errors
from rome_jax.devices import hosts
from rome_jax.train import loop


class Cost(NamedTuple):
  """The cost of one phase.

  Attributes:
    name: of the phase.
    steps: in all.
    compile_seconds: tracing and compiling.
    needed_bytes: of the program on one device: arguments, results and
      temporary memory; None where the backend does not say.
    available_bytes: of that device; None where it is unknown.
    step_seconds: of one step, without waiting for data.
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
  """Memory that a program may still take on the first device."""
  device = jax.local_devices()[0]
  if device.platform != 'cpu':
    stats = device.memory_stats() or {}
    if 'bytes_limit' not in stats:
      return None
    return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
  with contextlib.suppress(OSError):
    text = pathlib.Path('/proc/meminfo').read_text()
    if found := re.search(r'MemAvailable:\s*(\d+) kB', text):
      return int(found[1]) * 1024
  with contextlib.suppress(ValueError, OSError, AttributeError):
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return None


def accelerator_bytes() -> int | None:
  """All memory of the first device; None on a CPU, or where it is unknown."""
  device = jax.local_devices()[0]
  if device.platform == 'cpu':
    return None
  return (device.memory_stats() or {}).get('bytes_limit')


# ---------------------------------------------------- before it is compiled

# The K samples of 'vmap' may take this share of an accelerator's memory.
VMAP_SHARE = .5
# Memory of one sample against what its forward pass keeps. The table is in
# docs/precision.md.
KEPT_FACTOR = 2.6

# Temporary memory against that without the setting: bfloat16 as measured on a
# CPU, which emulates it; of recomputation not measured, since XLA undoes it on
# a CPU, but the forward pass keeps a tenth (docs/precision.md).
BFLOAT16_FACTOR = .9
REMAT_FACTOR = .5


def image_bytes(loss: Callable, theta, shape: tuple[int, ...]) -> int:
  """Memory of loss and gradient for one image of one sample, estimated.

  KEPT_FACTOR times what the forward pass keeps for the backward pass, which is
  known exactly without compiling.

  Args:
    loss: (theta, images) -> scalar.
    theta: an example of the weights.
    shape: of an image.
  """

  def kept(count):
    images = jax.ShapeDtypeStruct((count, *shape), jnp.float32)
    pull = jax.eval_shape(
        lambda theta, images: jax.vjp(
            lambda theta: loss(theta, images), theta)[1], theta, images)
    return sum(leaf.size * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(pull))

  # Weights are kept too, whatever the number of images.
  return int(KEPT_FACTOR * (kept(2) - kept(1)))


def samples(k: int, sample_bytes: int, total_bytes: int | None) -> str:
  """What `search.samples='auto'` stands for.

  On a CPU 'scan': there batching saves no time and costs K times the memory.
  On an accelerator 'vmap', whose fewer and larger operations keep a device
  busy that a batch of one sample does not, if the K samples fit into
  VMAP_SHARE of its memory, else 'scan'; this part is not measured. All of the
  memory counts, not what is free, so that a run that goes on chooses what it
  chose at first.

  Args:
    k: samples that a device evaluates.
    sample_bytes: of one of them, see `image_bytes`.
    total_bytes: of the device; None on a CPU, or where it is unknown.
  """
  fits = total_bytes is not None and k * sample_bytes <= (
      VMAP_SHARE * total_bytes)
  return 'vmap' if fits else 'scan'


# ----------------------------------------------------- when it is compiled


class Size(NamedTuple):
  """What the memory of a program follows from.

  Attributes:
    section: of the config, 'search' or 'retrain'.
    batch_size, accumulate, dtype, channels, remat: its fields.
    image_size: side of the images in pixels.
    data_parts, groups: devices that share the batch, and the K samples.
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
  """Three settings, the gentlest of those that make a program fit.

  By estimate: temporary memory is proportional to the images of one part, the
  channels, the bytes of an activation and, with 'vmap', the samples.

  Args:
    size: of the program.
    share: what part of its temporary memory there is.

  Returns:
    FIELD=VALUE each, marked where it will not do alone.
  """
  found = [(setting, factor <= share)
           for setting, factor in _candidates(size, share)]
  found.sort(key=lambda pair: not pair[1])  # stable
  return [setting if enough else f'{setting} (not enough alone)'
          for setting, enough in found[:3]]


def _candidates(size, share):
  """[(setting, factor of temporary memory)], the gentlest first."""
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
  # Even, for the ImageNet stem and halves of channels.
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
  """The first value that is enough, else the last."""
  return next(filter(enough, values), values[-1])


def check_memory(name: str, program: loop.Program, size: Size) -> None:
  """Refuses a program that does not fit, before it runs.

  Args:
    name: of the phase.
    program: compiled.
    size: what its memory follows from.

  Raises:
    UserError: it needs more memory than there is; the message has three
      settings that would make it fit.
  """
  available = available_bytes()
  if None in (available, program.needed_bytes) or (
      program.needed_bytes <= available):
    return
  fixed = program.needed_bytes - program.temp_bytes
  # A tenth is kept back for what the estimate does not know.
  share = .9 * (available - fixed) / program.temp_bytes
  raise errors.UserError(
      f'{name} needs {_gigabytes(program.needed_bytes)} of memory, but '
      f'{_gigabytes(available)} are free; by estimate one of these makes it '
      f'fit: {", ".join(smaller_settings(size, share))}')


def cost(phase: loop.Phase, program: loop.Program, carry, batch,
         way: str = '') -> Cost:
  """Times one step on a copy of the carry, which stays as it is."""
  available = available_bytes()

  def seconds():
    copy = jax.block_until_ready(jax.tree.map(jnp.copy, carry))
    began = time.perf_counter()
    jax.block_until_ready(program.call(copy, batch))
    return time.perf_counter() - began

  once = seconds()
  # What is quick is dominated by the first call's own costs. All processes
  # run a step or none.
  again = hosts.from_first(lambda: once < 1)
  return Cost(phase.name, phase.steps, program.compile_seconds,
              program.needed_bytes, available,
              seconds() if again else once, way)


def announce(what: str, phase: loop.Phase, program: loop.Program, carry,
             batch, size: Size) -> None:
  """Refuses what does not fit, else prints its plan on stderr in one line.

  Args:
    what, size: of `check_memory`.
    phase, program, carry, batch: of `plan`.
  """
  check_memory(what, program, size)
  print(cost(phase, program, carry, batch, size.way), file=sys.stderr,
        flush=True)


def _gigabytes(count):
  return 'unknown' if count is None else f'{count / 1e9:.2f} GB'


def _duration(seconds):
  minutes = round(seconds / 60)
  if minutes < 2:
    return f'{seconds:.0f} s'
  return f'{minutes} min' if minutes < 120 else f'{minutes / 60:.1f} h'
