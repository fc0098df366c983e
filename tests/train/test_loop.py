"""What the loop saves when data cannot be read, and what it refuses."""

import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax import errors
from rome_jax.train import checkpoint, loop, metrics

TIMES = ('time', 'seconds', 'images_per_second', 'step_ms', 'input_wait_ms')
STEPS = 11


class Never:
  requested = False


def batches(step):
  return {'x': np.float32(step)}


def step(state, batch):
  """The state is the sum of the batches."""
  state = state + batch['x']
  return state, {'train_loss': batch['x'] + 1}


@pytest.fixture(scope='module')
def program():
  return loop.compile_step(
      step, loop.init_carry(step, jnp.float32(0), batches(0)), batches(0))


def make_run(program, workdir, *, read=batches, test=None, steps=STEPS):
  phase = loop.Phase(
      'search', steps, 4, 1, read, lambda state, means, memo: (means, memo),
      test=test or (lambda state: {'test_accuracy': float(state) / 100}),
      test_every=4)
  settings = loop.Settings(workdir, 3, 1000, 2)
  with metrics.MetricsWriter(workdir, tensorboard=False) as writer:
    return loop.run(
        phase, program, loop.init_carry(step, jnp.float32(0), batches(0)),
        settings, writer, Never())


def saved(workdir):
  with checkpoint.Checkpoints(workdir / 'checkpoints' / 'search') as store:
    return store.steps()


def rows(workdir):
  return [{k: v for k, v in row.items() if k not in TIMES}
          for row in metrics.read(workdir)]


# By hand: lines every 3 steps, tests every 4 and at the end; the loss is the
# mean of step numbers 1, 2, ... since the line before, the state after n steps
# n (n-1) / 2.
WHOLE = [
    {'phase': 'search', 'step': n, 'epoch': n / 4, 'train_loss': loss,
     **({'test_accuracy': n * (n - 1) / 200} if n in (4, 8, 11) else {})}
    for n, loss in ((3, 2.), (4, 4.), (6, 5.5), (8, 7.5), (9, 9.),
                    (11, 10.5))]


def failing(calls, error):
  """A function of one argument that fails on the listed ones."""

  def read(step):
    if step in calls:
      raise error
    return batches(step)

  return read


@pytest.mark.parametrize('at', [1, 5, 6, 10])
@pytest.mark.parametrize('error', [
    errors.UserError('cats/3.png is not a readable image'),
    OSError(5, 'Input/output error', 'cats/3.png')])
def test_data_that_cannot_be_read_costs_no_step(program, tmp_path, at, error):
  with pytest.raises(errors.UserError, match='cats/3.png') as caught:
    make_run(program, tmp_path, read=failing([at], error))
  assert f'step {at} of search is saved' in str(caught.value)
  assert saved(tmp_path) == [at]
  outcome = make_run(program, tmp_path)
  assert outcome.finished and outcome.figures['resumed_at'] == at
  assert float(outcome.state) == STEPS * (STEPS - 1) / 2
  assert rows(tmp_path) == WHOLE


@pytest.mark.parametrize('at', [4, 8, 11])
def test_a_test_image_that_cannot_be_read(program, tmp_path, at):
  """The test is done when the run goes on, the last one too."""

  def test(state):
    if float(state) == at * (at - 1) / 2:
      raise errors.UserError('test/7.png is not a readable image')
    return {'test_accuracy': float(state) / 100}

  for _ in range(2):  # Still damaged: the same sentence.
    with pytest.raises(errors.UserError, match='test/7.png .* is saved'):
      make_run(program, tmp_path, test=test)
    assert saved(tmp_path) == [at]
  outcome = make_run(program, tmp_path)
  assert outcome.scalars['test_accuracy'] == pytest.approx(.55)
  assert rows(tmp_path) == WHOLE


def test_any_other_fault_of_the_data_saves_too(program, tmp_path):
  with pytest.raises(KeyError, match='mine'):
    make_run(program, tmp_path, read=failing([7], KeyError('mine')))
  assert saved(tmp_path) == [7]


def test_divergence_in_a_test_is_not_saved(program, tmp_path):
  with pytest.raises(errors.DivergedError):
    make_run(program, tmp_path, test=lambda state: {'test_loss': np.nan})
  assert saved(tmp_path) == []


def keep(workdir, wanted):
  path = workdir / metrics.FILENAME
  lines = [line for line in path.read_text().splitlines(keepends=True)
           if wanted(json.loads(line))]
  path.write_text(''.join(lines))


@pytest.mark.parametrize('wanted', [
    lambda row: False, lambda row: row['step'] < 11,
    lambda row: row['step'] < 4, lambda row: row['step'] != 11])
@pytest.mark.parametrize('until', [7, STEPS])
def test_metrics_lost_after_a_checkpoint_are_noticed(program, tmp_path, wanted,
                                                     until):
  """A finished phase would have ended without a test accuracy."""
  stop = errors.UserError('stop')
  if until < STEPS:
    with pytest.raises(errors.UserError):
      make_run(program, tmp_path, read=failing([until], stop))
  else:
    make_run(program, tmp_path)
  last = 6 if until < STEPS else STEPS
  keep(tmp_path, lambda row: wanted(row) and row['step'] != last)
  before = (tmp_path / metrics.FILENAME).read_bytes()
  with pytest.raises(errors.UserError, match=(
      rf'metrics.jsonl lacks the line of step {last} of search')):
    make_run(program, tmp_path)
  assert (tmp_path / metrics.FILENAME).read_bytes() == before


def test_a_deleted_metrics_file_is_noticed(program, tmp_path):
  make_run(program, tmp_path)
  (tmp_path / metrics.FILENAME).unlink()
  with pytest.raises(errors.UserError, match='lacks the line of step 11'):
    make_run(program, tmp_path)


def test_lines_of_another_phase_do_not_stand_in(program, tmp_path):
  make_run(program, tmp_path)
  path = tmp_path / metrics.FILENAME
  path.write_text(path.read_text().replace('"search"', '"retrain/a"'))
  with pytest.raises(errors.UserError, match='lacks the line of step 11'):
    make_run(program, tmp_path)


def test_a_checkpoint_before_the_first_line_needs_none(program, tmp_path):
  with pytest.raises(errors.UserError):
    make_run(program, tmp_path,
             read=failing([2], errors.UserError('stop')))
  assert rows(tmp_path) == []
  make_run(program, tmp_path)
  assert rows(tmp_path) == WHOLE


def test_the_share_of_waiting_for_input(program, tmp_path):
  """Batches take .03 s, a step next to nothing; tests take .1 s, uncounted."""

  def read(step):
    time.sleep(.03)
    return batches(step)

  def test(state):
    time.sleep(.1)
    return {'test_accuracy': 0.}

  outcome = make_run(program, tmp_path, read=read, test=test)
  lines = metrics.read(tmp_path)
  steps = np.diff([0, *(line['step'] for line in lines)])
  waited, spent = (sum(line[name] * steps for line, steps in zip(lines, steps))
                   for name in ('input_wait_ms', 'step_ms'))
  assert outcome.figures['input_wait_share'] == pytest.approx(waited / spent)
  assert outcome.figures['input_wait_share'] > .1


def test_a_checkpoint_past_the_end_is_refused(program, tmp_path):
  make_run(program, tmp_path)
  with pytest.raises(errors.UserError, match=(
      f'checkpoint of step {STEPS} of search, which ends with step 5')):
    make_run(program, tmp_path, steps=5)
