"""Fair timing on a shared machine, and a description of that machine."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable

from rome_jax import errors


def interleaved(
    functions: dict[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    primed: bool = False,
) -> dict[str, dict[str, float]]:
  """Times functions in turn, A B C A B C ..., so that drift hits all alike.

  Ratios of medians from one call are comparable; absolute times of different
  calls are not. A function must return only when its work is done: one that
  calls JAX ends in `jax.block_until_ready`.

  Args:
    functions: zero-argument callables by name; run in this order.
    repeats: timed rounds, at least 1.
    warmup: untimed rounds before them (compilation, caches), at least 0.
    primed: whether each timed call follows an untimed one of the same
      function: for short ones, which else begin with the caches, and the
      threads that spin for a while, of the one before.

  Returns:
    Per name, 'median', 'min' and 'max' over the rounds, in seconds.

  Raises:
    UserError: repeats or warmup is too small.
  """
  if repeats < 1:
    raise errors.UserError(f'repeats={repeats} must be at least 1')
  if warmup < 0:
    raise errors.UserError(f'warmup={warmup} must be at least 0')
  for _ in range(warmup):
    for function in functions.values():
      function()
  seconds = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      if primed:
        function()
      start = time.perf_counter()
      function()
      seconds[name].append(time.perf_counter() - start)
  return {
      name: {
          'median': statistics.median(times),
          'min': min(times),
          'max': max(times),
      }
      for name, times in seconds.items()
  }


def machine() -> dict[str, object]:
  """Describes what a timing ran on, without names of hosts, users or paths.

  Returns:
    'cpu' (model name), 'cores', 'memory_bytes' (physical), 'python', 'jax',
    'torch' (versions) and 'date' (UTC, ISO 8601); None where unknown or not
    installed.
  """
  return {
      'cpu': _cpu_model(),
      'cores': os.cpu_count(),
      'memory_bytes': _memory_bytes(),
      'python': platform.python_version(),
      'jax': _version('jax'),
      'torch': _version('torch'),
      'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
  }


def _cpu_model():
  # platform.processor() is empty or just 'x86_64' on most Linux systems.
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    text = ''
  found = re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE)
  return found[1] if found else platform.processor() or platform.machine()


def _memory_bytes():
  try:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  except (AttributeError, ValueError, OSError):  # not a POSIX system
    return None


def _version(package):
  # Reads metadata, so that torch is not imported just to be described.
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
