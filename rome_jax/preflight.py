"""What a run will cost, said before its first step, and refused if too much.

Memory is that of the compiled program (XLA's own figures), time that of one
step on a copy of the state.
"""

import contextlib
import os
import pathlib
import re
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rome_jax import errors, hosts, loop


class Plan(NamedTuple):
  """The cost of one phase.

  Attributes:
    name: of the phase.
    steps: in all.
    compile_seconds: tracing and compiling.
    needed_bytes: of the program on one device: arguments, results and
      temporary memory; None where the backend does not say.
    available_bytes: of that device; None where it is unknown.
    step_seconds: of one step, without waiting for data.
  """

  name: str
  steps: int
  compile_seconds: float
  needed_bytes: int | None
  available_bytes: int | None
  step_seconds: float

  def __str__(self):
    memory = _gigabytes(self.needed_bytes)
    if self.available_bytes is not None:
      memory += f' of {_gigabytes(self.available_bytes)}'
    return (
        f'{self.name}: compiled in {self.compile_seconds:.0f} s; memory '
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


def check_memory(name: str, program: loop.Program, smaller: str) -> None:
  """Refuses a program that does not fit, before it runs.

  Args:
    name: of the phase.
    program: compiled.
    smaller: settings that would make it fit.

  Raises:
    UserError: it needs more memory than there is.
  """
  available = available_bytes()
  if None not in (available, program.needed_bytes) and (
      program.needed_bytes > available):
    raise errors.UserError(
        f'{name} needs {_gigabytes(program.needed_bytes)} of memory, but '
        f'{_gigabytes(available)} are free; {smaller}')


def plan(phase: loop.Phase, program: loop.Program, carry, batch) -> Plan:
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
  return Plan(phase.name, phase.steps, program.compile_seconds,
              program.needed_bytes, available, seconds() if again else once)


def announce(what: str, phase: loop.Phase, program: loop.Program, carry,
             batch, smaller: str) -> None:
  """Refuses what does not fit, else prints its plan on stderr in one line.

  Args:
    what, smaller: name and advice of `check_memory`.
    phase, program, carry, batch: of `plan`.
  """
  check_memory(what, program, smaller)
  print(plan(phase, program, carry, batch), file=sys.stderr, flush=True)


def _gigabytes(count):
  return 'unknown' if count is None else f'{count / 1e9:.2f} GB'


def _duration(seconds):
  minutes = round(seconds / 60)
  if minutes < 2:
    return f'{seconds:.0f} s'
  return f'{minutes} min' if minutes < 120 else f'{minutes / 60:.1f} h'
