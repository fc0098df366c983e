"""The loop that search and retraining share.

It compiles a step, feeds it prefetched batches, writes metrics and
checkpoints, and stops cleanly on request. A checkpoint holds the carry, and
the carry holds everything that later results depend on. So a run that was
killed and resumed ends with the same bits as an uninterrupted one, metrics
included.

A phase may have a boundary, a second program that runs once an epoch. It may
set the state back, or end the phase. The loop's own counter, which numbers
batches, lines and checkpoints, always goes on, so the end moves: it is
`step + (phase.steps - state.step)`. A boundary runs before the line and the
checkpoint of its step: what is saved there has been through it.
"""

import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax import data, errors
from rome_jax.devices import hosts
from rome_jax.devices import mesh as mesh_lib
from rome_jax.train import checkpoint, metrics


class Program(NamedTuple):
  """A compiled step.

  Attributes:
    call: (carry, batch) -> carry; the carry is donated.
    compile_seconds: time for tracing and compiling.
    temp_bytes: temporary memory of the program; None if unknown.
    needed_bytes: temporary memory, arguments and results; None if unknown.
  """

  call: Callable
  compile_seconds: float
  temp_bytes: int | None
  needed_bytes: int | None = None


class Carry(NamedTuple):
  """What a checkpoint holds.

  Attributes:
    state: the phase's own state.
    window: sums of the metrics since the last line was logged.
    count: int32, steps in the window.
    memo: what `Phase.observe` compares the state with.
  """

  state: Any
  window: dict[str, jax.Array]
  count: jax.Array
  memo: Any


class Phase(NamedTuple):
  """One training: the search, or a retraining.

  Attributes:
    name: 'search' or 'retrain/<name>'.
    steps: number of steps.
    steps_per_epoch: of the data that counts epochs.
    images_per_step: images that pass a network in one step, for images/s.
    batches: step -> batch, pure.
    observe: (state, means, memo) -> (scalars to log, memo), on the host.
    memo: the initial memo of `observe`, a pytree of arrays.
    test: state -> scalars, or None. `observe` gets them among the means.
    test_every: steps between two tests; the last step is always tested.
    on_test: (state, scalars of the test) -> None, called after each test whose
      scalars are finite; or None.
    on_checkpoint: (step, state) -> None, called before each save with the
      state on the host; or None.
    boundary: (state, batch) -> state, or None. Called after the last step of
      each epoch with the batch of that step, which is free: the result must
      not depend on anything else. State is donated. The phase then lasts
      until `state.step` is `steps`, wherever a boundary has set it.
    stop: state -> bool, or None. Asked after each boundary: whether the phase
      ends here.
    draw: state -> [n] weights, or None. By them the images of `batches` are
      drawn up to the next boundary; see `data.Batches`.
    line_at: a step after which a line is logged whatever `log_every`, so that
      no mean spans it; 0: none.
    first: the step at which the phase begins: where the state is that of
      another phase, which it goes on from.
  """

  name: str
  steps: int
  steps_per_epoch: int
  images_per_step: int
  batches: Callable
  observe: Callable
  memo: Any = ()
  test: Callable | None = None
  test_every: int = 1
  on_test: Callable | None = None
  on_checkpoint: Callable | None = None
  boundary: Callable | None = None
  stop: Callable | None = None
  draw: Callable | None = None
  line_at: int = 0
  first: int = 0


class Settings(NamedTuple):
  """The loop's part of a config; see the config fields of the same names."""

  workdir: pathlib.Path
  log_every: int
  checkpoint_every: int
  keep_checkpoints: int


class Outcome(NamedTuple):
  """The result of a phase.

  Attributes:
    finished: False if a signal ended it early (its state is saved).
    state: the last state.
    scalars: the last line logged.
    figures: seconds, images and images_per_second over all starts, tests
      included; compile_seconds and temp_bytes of this start; input_wait_share,
      of the seconds that its steps took, without tests; steps, at which the
      phase ends as far as is known; resumed_at, the step this start continued
      from, or None.
  """

  finished: bool
  state: Any
  scalars: dict[str, float]
  figures: dict[str, Any]


class Placement(NamedTuple):
  """How a program's arrays are placed on a mesh.

  Attributes:
    carry: sharding of everything in the carry.
    batch: sharding of a batch's arrays.
  """

  carry: Any
  batch: Any


MOST_STEPS = 2**31 - 1  # a step is an int32


def checked_steps(steps: int, epochs: str, instead: str) -> int:
  """Checks the number of steps of a phase and returns it.

  Args:
    steps: in all.
    epochs: the field that sets them, with its value.
    instead: what the user can do instead.

  Raises:
    UserError: there are none, or more than `MOST_STEPS`.
  """
  if steps < 1:
    raise errors.UserError(
        f'{epochs} gives no steps; use at least 1, {instead}')
  if steps > MOST_STEPS:
    raise errors.UserError(
        f'{epochs} gives {steps:,} steps; at most {MOST_STEPS:,} are possible')
  return steps


def init_carry(step: Callable, state: Any, batch: Any, memo: Any = (),
               placement: Placement | None = None) -> Carry:
  """Returns the carry before the first step of `step`."""
  shapes = jax.eval_shape(step, state, batch)[1]
  window = {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}
  carry = Carry(state, window, jnp.zeros((), jnp.int32), memo)
  return mesh_lib.place(carry, placement.carry) if placement else carry


def compile_step(step: Callable, carry: Carry, batch: Any, label: str = '',
                 placement: Placement | None = None) -> Program:
  """Compiles a step together with the sums of its metrics.

  Args:
    step: (state, batch) -> (state, metrics).
    carry, batch: examples.
    label: name shown on stderr while the user waits; '' for none.
    placement: on a mesh of devices; None for one device.
  """
  if label:
    print(f'{label}: compiling', file=sys.stderr, flush=True)

  def advance(carry, batch):
    state, scalars = step(carry.state, batch)
    window = {k: carry.window[k] + v for k, v in scalars.items()}
    return carry._replace(state=state, window=window, count=carry.count + 1)

  return _compile(advance, carry, batch, placement)


def compile_boundary(boundary: Callable, state: Any, batch: Any,
                     placement: Placement | None = None) -> Program:
  """Compiles what runs at the end of an epoch.

  Args:
    boundary: (state, batch) -> state.
    state, batch: examples.
    placement: on a mesh of devices; None for one device.

  Returns:
    A program whose `call` is a `Phase.boundary`.
  """
  return _compile(boundary, state, batch, placement)


def _compile(function, carry, batch, placement):
  """The program of (carry, batch) -> carry, which donates the carry."""
  began = time.perf_counter()
  shardings = {} if placement is None else dict(
      in_shardings=tuple(placement), out_shardings=placement.carry)
  compiled = jax.jit(function, donate_argnums=0, **shardings).lower(
      carry, batch).compile()
  seconds = time.perf_counter() - began
  hosts.wait_for_all('compiled')
  analysis = compiled.memory_analysis()
  if analysis is None:
    return Program(compiled, seconds, None)
  needed = (analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
            + analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
  return Program(compiled, seconds, analysis.temp_size_in_bytes, needed)


def run(phase: Phase, program: Program, carry: Carry, settings: Settings,
        writer: metrics.MetricsWriter, stop: Any) -> Outcome:
  """Runs a phase to its end, from its newest checkpoint if there is one.

  Args:
    phase: what to run.
    program: its compiled step.
    carry: the carry at the step `phase.first`.
    settings: see `Settings`.
    writer: for metrics; rewound to the checkpoint that the run resumes from.
    stop: object whose `requested` becomes true when the run should end.

  Raises:
    DivergedError: a metric is no longer finite; that state is not saved.
    UserError: a checkpoint or file cannot be read or written.
  """
  folder = settings.workdir / 'checkpoints' / phase.name
  with checkpoint.Checkpoints(folder, settings.keep_checkpoints) as store:
    found = _restore(store, carry)
    start, carry = found or (phase.first, carry)
    logged = start - int(carry.count)
    if found:
      hosts.from_first(lambda: _check_lines(phase, folder, logged,
                                            settings.workdir))
    writer.rewind(phase.name, logged if found else -1)
    return _Runner(phase, program, settings, writer, stop, store).run(
        start, carry, resumed=found is not None)


def _restore(store, carry):
  """Returns (step, carry) of the checkpoint that process 0 chooses, or None."""
  found = store.restore(carry) if hosts.is_first() else None
  step = hosts.from_first(lambda: found and found[0])
  if step is None:
    return None
  return found or (step, store.read(step, carry))


def _check_lines(phase, folder, logged, workdir):
  """Refuses to continue if the line of step `logged` is lost.

  The checkpoint was saved after that line, whose means and test cannot be
  computed again.
  """
  name = phase.name
  if logged > phase.first and not any(
      row.get('phase') == name and row.get('step') == logged
      for row in metrics.read(workdir)):
    raise errors.UserError(
        f'{workdir / metrics.FILENAME} lacks the line of step {logged} of '
        f'{name}, which was written before its checkpoint; put the file back, '
        f'or delete {folder} to train {name} again')


class _Runner:
  """The mutable part of one `run`: clocks and the line being collected."""

  def __init__(self, phase, program, settings, writer, stop, store):
    self.phase, self.program, self.settings = phase, program, settings
    self.writer, self.stop, self.store = writer, stop, store
    self.scalars = {}
    self.saved = None
    self.waited = 0.  # for batches, in the segments before this one
    self.stepped = 0.  # seconds, up to the last line

  def run(self, start: Any, carry: Any, resumed: Any) -> Outcome:
    phase = self.phase
    self.saved = start if resumed else None
    self.began = self.logged_at = time.perf_counter()
    self.logged_step, self.logged_wait = start, 0.
    step, self.end = start, self._end(start, carry.state)
    if start > self.end:
      raise errors.UserError(
          f'{self.store.directory} has a checkpoint of step {start} of '
          f'{phase.name}, which ends with step {self.end}; delete that folder '
          'to train it again')
    # Time continues from the last line before the checkpoint.
    self.scalars = self._last_line() if resumed else {}
    self.seconds_before = self.scalars.get('seconds', 0.)
    if resumed and int(carry.count) and self._tests_at(start):
      # An image that could not be read ended the test of this step.
      carry, self.saved = self._log(start, carry, 0.), None
    with metrics.Progress(
        self.end, label=phase.name, initial=start,
        images_per_unit=phase.images_per_step) as self.progress:
      stopped = False
      while step < self.end and not stopped:
        step, carry, stopped = self._segment(step, carry)
    if self.saved != step:
      self._save(step, carry)
    self.store.wait()
    jax.block_until_ready(carry)
    seconds = self.seconds_before + time.perf_counter() - self.began
    return Outcome(step == self.end, carry.state, self.scalars, {
        'seconds': seconds, 'steps': self.end,
        'images': (step - phase.first) * phase.images_per_step,
        'images_per_second':
            (step - phase.first) * phase.images_per_step / max(seconds, 1e-9),
        'compile_seconds': self.program.compile_seconds,
        'temp_bytes': self.program.temp_bytes,
        'input_wait_share': self.logged_wait / max(self.stepped, 1e-9),
        'resumed_at': start if resumed else None})

  def _end(self, step, state):
    """The step at which the phase ends if no later boundary moves it."""
    phase = self.phase
    if phase.boundary is None:
      return phase.steps
    if phase.stop is not None and bool(phase.stop(state)):
      return step
    return step + phase.steps - int(state.step)

  def _segment(self, step, carry):
    """Steps up to the next boundary, or to the end.

    No batch past it is read ahead: what it is may depend on the boundary.

    Returns:
      (step, carry, whether it was asked to stop).
    """
    phase, last, stopped = self.phase, self.end, False
    if phase.boundary is not None:
      per_epoch = phase.steps_per_epoch
      last = min(last, (step // per_epoch + 1) * per_epoch)
    source = phase.batches
    if phase.draw is not None:
      source = source.weighted(np.asarray(phase.draw(carry.state)))
    with data.prefetch(source, step, last) as batches:
      while step < last and not stopped:
        batch = self._guarded(step, carry, batches.__next__)
        carry = self.program.call(carry, batch)
        step += 1
        carry = self._after(
            step, carry, batch, self.waited + batches.wait_seconds)
        stopped = self.stop.requested and step < self.end
      self.waited += batches.wait_seconds
    return step, carry, stopped

  def _after(self, step, carry, batch, wait):
    """What follows a step: the boundary, a line, a checkpoint."""
    phase = self.phase
    at_boundary = self._has_boundary(step)
    if at_boundary:
      carry = self._cross(step, carry, batch)
    last = step == self.end
    if (step % self.settings.log_every == 0 or last or at_boundary
        or step == phase.line_at or self._tests_at(step)):
      carry = self._log(step, carry, wait)
    self.progress.update(step, **{
        k: v for k, v in self.scalars.items() if k.endswith('accuracy')})
    if step % self.settings.checkpoint_every == 0 or last:
      self._save(step, carry)
    return carry

  def _has_boundary(self, step):
    phase = self.phase
    return phase.boundary is not None and step % phase.steps_per_epoch == 0

  def _cross(self, step, carry, batch):
    """The carry after a boundary, which may have moved the end."""
    jax.block_until_ready(carry)
    began = time.perf_counter()
    state = jax.block_until_ready(self.phase.boundary(carry.state, batch))
    self.end = self._end(step, state)
    self.progress.retarget(self.end)
    # Its time counts in no step.
    self.logged_at += time.perf_counter() - began
    return carry._replace(state=state)

  def _guarded(self, step, carry, read):
    """`read()`; if the data cannot be read, saves before it raises.

    Of several processes the others are at a later step by then, and a
    checkpoint is what all agree on; so they keep the last one.
    """
    try:
      return read()
    except (errors.DivergedError, errors.LostError):
      raise
    except Exception as error:
      name = self.phase.name
      if self.saved != step and not hosts.several():
        self._save(step, carry)
        self.store.wait()
      if not isinstance(error, (errors.UserError, OSError)):
        raise
      saved = f'step {self.saved or 0} of {name} is saved'
      raise errors.UserError(
          f'{error}; {saved}, and the same command continues once the data '
          'can be read') from error

  def _tests_at(self, step):
    phase = self.phase
    return phase.test is not None and (
        step % phase.test_every == 0 or step == self.end)

  def _log(self, step, carry, wait):
    phase = self.phase
    means = _means(phase.name, step, carry)
    now = time.perf_counter()
    steps, seconds = step - self.logged_step, now - self.logged_at
    if self._tests_at(step):
      tested = self._guarded(step, carry, lambda: phase.test(carry.state))
      means |= _finite(phase.name, step, tested)
      if phase.on_test is not None:
        phase.on_test(carry.state, tested)
    scalars, memo = phase.observe(carry.state, means, carry.memo)
    scalars = {
        'epoch': step / phase.steps_per_epoch, **scalars,
        'seconds': self.seconds_before + now - self.began,
        'images_per_second': steps * phase.images_per_step / seconds,
        'step_ms': 1e3 * seconds / max(steps, 1),
        'input_wait_ms': 1e3 * (wait - self.logged_wait) / max(steps, 1)}
    self.writer.write(phase.name, step, scalars)
    self.scalars = scalars
    self.stepped += seconds
    # The time of a test counts in no step.
    self.logged_at, self.logged_step = time.perf_counter(), step
    self.logged_wait = wait
    return carry._replace(
        window=jax.tree.map(jnp.zeros_like, carry.window),
        count=jnp.zeros_like(carry.count), memo=memo)

  def _last_line(self):
    lines = [row for row in metrics.read(self.settings.workdir)
             if row['phase'] == self.phase.name]
    return {k: v for k, v in lines[-1].items()
            if k not in ('phase', 'step', 'time')} if lines else {}

  def _save(self, step, carry):
    if int(carry.count):
      _means(self.phase.name, step, carry)  # Never save a diverged state.
    carry = jax.device_get(carry)
    if hosts.several():
      hosts.compare(f'state at step {step}', checkpoint.digest(carry))
    self.writer.sync()
    if self.phase.on_checkpoint is not None:
      self.phase.on_checkpoint(step, carry.state)
    if hosts.is_first():
      self.store.save(step, carry)
    self.saved = step


def _means(name, step, carry):
  """Returns the window's means as floats; DivergedError if not finite."""
  count = max(int(carry.count), 1)
  means = {k: float(np.asarray(v)) / count
           for k, v in jax.device_get(carry.window).items()}
  return _finite(name, step, means)


def _finite(name, step, scalars):
  """Returns the scalars; DivergedError if one is not finite."""
  bad = [k for k, v in scalars.items() if not math.isfinite(v)]
  if bad:
    raise errors.DivergedError(
        f'{name} diverged: {bad[0]} is {scalars[bad[0]]} by step {step}; lower '
        'the learning rate or change the seed, in another --workdir')
  return scalars


