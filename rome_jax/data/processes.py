"""Batches that worker processes make in advance, started by grain.

A batch depends on nothing but its step, so grain only says which process makes
which; which images are in it, and how they are augmented, it does not decide.
The processes use no device and end with the run, however that ends.
"""

import gc
import multiprocessing
import os
import re
import signal
import threading
from multiprocessing import connection, resource_tracker
from typing import Any

import numpy as np

from rome_jax import errors
from rome_jax.data import splits

# A stop of the run reaches all of its processes at once; its own process then
# ends the others, once it has saved.
_STOPS = (signal.SIGINT, signal.SIGTERM)


class Stream:
  """batches(start), ..., batches(stop - 1), one at each call.

  Call it from one thread only, which is not the main one: it blocks there the
  signals that a run is stopped by, and the processes inherit that.
  """

  def __init__(self, batches: Any, start: int, stop: int, workers: int):
    """Starts nothing yet.

    Args:
      batches: step -> pytree of arrays, pure. If it has `host` and `placed`
        (`devices.mesh.ShardedBatches`), the processes call `host`, and this
        one `placed` on what they made.
      start, stop: steps, at least one.
      workers: processes. Each holds up to three batches.

    Raises:
      UserError: grain is not installed.
    """
    grain = splits.require('grain', "loader='grain'")
    flags = splits.require('absl.flags', 'grain').FLAGS
    if not flags.is_parsed():  # Grain asks them, whoever reads the real ones.
      flags.mark_as_parsed()
    self._host = getattr(batches, 'host', batches)
    self._placed = getattr(batches, 'placed', None)
    self._steps = grain.MapDataset.range(start, stop).map(
        self._host).to_iter_dataset(grain.ReadOptions(0, 0)).mp_prefetch(
            grain.MultiprocessingOptions(min(workers, stop - start)), _begin)
    self._iterator: Any = None
    # Starting it would undo what the first call does to the signals.
    resource_tracker.ensure_running()

  def __call__(self, step: int) -> Any:
    """The next batch.

    Args:
      step: of the batch; steps come in order.

    Raises:
      UserError: a process was killed, or could not start.
    """
    if self._iterator is None:
      # A worker that is only importing a script which starts a run: there it
      # would wait for processes that multiprocessing refuses to start.
      if getattr(multiprocessing.current_process(), '_inheriting', False):
        os._exit(1)
      if hasattr(signal, 'pthread_sigmask'):  # Not on Windows.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
      self._iterator = iter(self._steps)
    try:
      made = next(self._iterator)
    except errors.UserError as error:
      # The frames of grain hold batches in shared memory.
      raise error.with_traceback(None) from None
    except RuntimeError as error:
      if code := re.search(r'exit code (-?\d+)', str(error)):
        raise _killed(int(code[1])) from error
      raise
    made = _copied(made)
    return made if self._placed is None else self._placed(made)

  def close(self) -> None:
    """Ends the processes; no call may be under way."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None
      # Grain keeps the last batches, in shared memory, in a cycle.
      gc.collect()


def _copied(tree):
  """Arrays of this process instead of shared memory, whoever keeps them."""
  if isinstance(tree, dict):
    return {name: _copied(leaf) for name, leaf in tree.items()}
  return np.array(tree)


def _killed(code):
  """What a user can do about a process that ended by itself."""
  reason = (
      "a script of one's own must guard its start by "
      "`if __name__ == '__main__':`" if code > 0 else
      'was it killed, or is there too little memory, or shared memory '
      '(/dev/shm), for config.loader_workers?')
  return errors.UserError(
      f"a process of config.loader='grain' ended with exit code {code}; "
      f'{reason}')


def _begin(number, count):
  """What each process does first."""
  del number, count
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  """Grain's processes would outlive a run that is killed."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    connection.wait([parent.sentinel])
    os._exit(1)
