"""Boundaries of epochs in the loop: rolling back, ending, and resuming.

A toy: the state is (steps done, sum of the batches, boundaries crossed). The
whole course is written out in plain Python (`expected`) beside it.
"""

import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stopping import StopAfter

from rome_jax.devices import mesh as mesh_lib
from rome_jax.train import checkpoint, loop, metrics

TIMES = ('time', 'seconds', 'images_per_second', 'step_ms', 'input_wait_ms')
STEPS, EPOCH = 14, 4


class State(NamedTuple):
  step: Any
  total: Any
  crossed: Any


def first():
  return State(jnp.int32(0), jnp.float32(0), jnp.int32(0))


def batches(step):
  return {'x': np.float32([step] * 4)}


def update(state, batch):
  x = batch['x'].mean()
  return state._replace(step=state.step + 1, total=state.total + x), {
      'train_loss': x}


def rolls_back(state, batch):
  """The second boundary sets the state back by an epoch."""
  again = state.crossed == 1
  return State(
      jnp.where(again, state.step - EPOCH, state.step),
      jnp.where(again, batch['x'].mean() / 8, state.total), state.crossed + 1)


def counts(state, batch):
  return state._replace(crossed=state.crossed + 1)


def compiled(boundary, placement=None):
  carry = loop.init_carry(update, first(), batches(0), placement=placement)
  batch = batches(0)
  return types.SimpleNamespace(
      update=loop.compile_step(update, carry, batch, placement=placement),
      boundary=loop.compile_boundary(
          boundary, carry.state, batch, placement).call)


@pytest.fixture(name='back', scope='module')
def _back():
  return compiled(rolls_back)


def phase_of(programs, read=batches, stop=None, test=None):
  return loop.Phase(
      'search', STEPS, EPOCH, 1, read,
      lambda state, means, memo: (
          {**means, 'total': float(state.total)}, memo),
      test=test, test_every=EPOCH, boundary=programs.boundary, stop=stop)


def run(programs, workdir, stop_after=10**6, placement=None, **options):
  settings = loop.Settings(workdir, 3, 5, 10)
  carry = loop.init_carry(update, first(), batches(0), placement=placement)
  with metrics.MetricsWriter(workdir, tensorboard=False) as writer:
    return loop.run(phase_of(programs, **options), programs.update, carry,
                    settings, writer, StopAfter(stop_after))


def lines(workdir):
  return [{k: v for k, v in row.items() if k not in TIMES}
          for row in metrics.read(workdir)]


def numbers(state):
  return [float(leaf) for leaf in state]


def expected():
  """What rolls_back does to 14 steps of 4 an epoch, by hand.

  The state's step goes 1 ... 8 -> 4, 5 ... 14, the loop's 1 ... 18.
  """
  rows, window, state = [], [], [0, 0., 0]
  for step in range(1, STEPS + EPOCH + 1):
    x = step - 1.
    state = [state[0] + 1, state[1] + x, state[2]]
    window.append(x)
    if step % EPOCH == 0:
      if state[2] == 1:
        state[:2] = [state[0] - EPOCH, x / 8]
      state[2] += 1
    if step % 3 == 0 or step % EPOCH == 0 or step == STEPS + EPOCH:
      rows.append({'phase': 'search', 'step': step, 'epoch': step / EPOCH,
                   'train_loss': sum(window) / len(window),
                   'total': state[1]})
      window = []
  return rows, [float(value) for value in state]


def test_a_boundary_that_sets_the_state_back(back, tmp_path):
  outcome = run(back, tmp_path)
  rows, state = expected()
  assert outcome.finished and outcome.figures['steps'] == STEPS + EPOCH
  assert numbers(outcome.state) == state and state[0] == STEPS
  assert lines(tmp_path) == rows


@pytest.mark.parametrize('at', [
    (3,), (4,), (5,), (7,), (8,), (9,), (13,), (14,), (17,), (8, 1, 7), (4, 4)])
def test_interrupted_anywhere_it_ends_the_same(back, tmp_path, at):
  """Also exactly at a boundary, before and after the one that sets back."""
  for count in at:
    assert not run(back, tmp_path, stop_after=count).finished
  outcome = run(back, tmp_path)
  rows, state = expected()
  assert outcome.finished and numbers(outcome.state) == state
  assert lines(tmp_path) == rows
  again = run(back, tmp_path)  # A finished phase does nothing.
  assert again.finished and numbers(again.state) == state
  assert lines(tmp_path) == rows


@pytest.mark.parametrize('kept', [5, 10, 15])
def test_killed_it_goes_on_from_an_older_checkpoint(back, tmp_path, kept):
  """A kill loses what came after the newest checkpoint, lines included."""
  run(back, tmp_path)
  folder = tmp_path / 'checkpoints' / 'search'
  with checkpoint.Checkpoints(folder, 10) as store:
    assert store.steps() == [5, 10, 15, 18]
  for path in folder.iterdir():
    if path.name.isdigit() and int(path.name) > kept:
      for file in sorted(path.rglob('*'), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
      path.rmdir()
  outcome = run(back, tmp_path)
  assert outcome.figures['resumed_at'] == kept
  assert (lines(tmp_path), numbers(outcome.state)) == expected()


def test_stop_ends_the_phase_at_its_boundary(tmp_path):
  programs = compiled(counts)
  stop = lambda state: state.crossed == 2  # noqa: E731
  run(programs, tmp_path, stop_after=6, stop=stop)
  outcome = run(programs, tmp_path, stop=stop)
  assert outcome.finished and outcome.figures['steps'] == 2 * EPOCH
  assert numbers(outcome.state) == [8., 28., 2.]
  assert [row['step'] for row in lines(tmp_path)] == [3, 4, 6, 8]
  again = run(programs, tmp_path, stop=stop)
  assert again.finished and again.figures['resumed_at'] == 8
  assert [row['step'] for row in lines(tmp_path)] == [3, 4, 6, 8]


def test_no_batch_past_a_boundary_is_read_ahead(back, tmp_path):
  """What they are may then depend on the boundary."""
  log = []

  def read(step):
    log.append(step)
    return batches(step)

  def boundary(state, batch):
    log.append('boundary')
    return back.boundary(state, batch)

  run(types.SimpleNamespace(update=back.update, boundary=boundary), tmp_path,
      read=read)
  cut = [i for i, entry in enumerate(log) if entry == 'boundary']
  parts = [log[a:b] for a, b in zip([0, *(i + 1 for i in cut)], [*cut, None])]
  assert [sorted(part) for part in parts] == [
      [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [16, 17]]


def test_the_test_sees_the_state_after_the_boundary(back, tmp_path):
  """And `observe` gets what it says; a test that fails is made up for."""
  fail = [True]

  def test(state):
    if int(state.crossed) == 2 and fail:
      fail.pop()
      raise OSError(5, 'Input/output error', '7.png')
    return {'seen': float(state.step)}

  with pytest.raises(ValueError, match='step 8 of search is saved'):
    run(back, tmp_path, test=test)
  outcome = run(back, tmp_path, test=test)
  assert (numbers(outcome.state) == expected()[1]
          and outcome.figures['resumed_at'] == 8)
  seen = {row['step']: row['seen'] for row in lines(tmp_path) if 'seen' in row}
  assert seen == {4: 4., 8: 4., 12: 8., 16: 12., 18: 14.}


def test_on_a_mesh(tmp_path):
  mesh = mesh_lib.make_mesh(data=min(4, jax.device_count()))
  placement = loop.Placement(
      mesh_lib.replicated(mesh), mesh_lib.split_batch(mesh))

  def read(step):
    rows = mesh_lib.local_rows(placement.batch, 4)
    return mesh_lib.from_rows(batches(step), rows, 4, placement.batch)

  outcome = run(compiled(rolls_back, placement), tmp_path, stop_after=8,
                placement=placement, read=read)
  assert not outcome.finished
  outcome = run(compiled(rolls_back, placement), tmp_path,
                placement=placement, read=read)
  assert (lines(tmp_path), numbers(outcome.state)) == expected()
