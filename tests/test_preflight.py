"""What a run will cost, said before it begins."""

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax import config as config_lib
from rome_jax import errors, loop, main, preflight


def program(needed):
  return loop.Program(lambda carry, batch: carry, 2., 10, needed)


def test_what_does_not_fit_is_refused(monkeypatch):
  monkeypatch.setattr(preflight, 'available_bytes', lambda: 1_000_000_000)
  preflight.check_memory('the search', program(10**9), 'lower k')
  preflight.check_memory('the search', program(None), 'lower k')
  with pytest.raises(errors.UserError, match=(
      'the search needs 1.50 GB of memory, but 1.00 GB are free; lower k')):
    preflight.check_memory('the search', program(1_500_000_000), 'lower k')


def test_available_memory_is_that_of_this_machine():
  assert 10**8 < preflight.available_bytes() < 10**14


def test_timing_leaves_the_state_alone():
  """The step donates its argument; the carry is still there afterwards."""
  state = {'x': jnp.arange(3.)}

  def step(state, batch):
    return {'x': state['x'] + batch}, {'sum': state['x'].sum()}

  carry = loop.init_carry(step, state, np.float32(1.))
  compiled = loop.compile_step(step, carry, np.float32(1.))
  phase = loop.Phase('search', 100, 10, 1, lambda i: np.float32(1.), None)
  plan = preflight.plan(phase, compiled, carry, np.float32(1.))
  np.testing.assert_array_equal(carry.state['x'], [0, 1, 2])
  assert plan.step_seconds > 0 and plan.steps == 100
  # State, window, count: 3 + 1 + 1 words, and the batch, at least.
  assert plan.needed_bytes >= 4 * 5
  text = str(preflight.Plan('search', 19_500, 50.4, 510_000_000, 24 * 10**9,
                            2.2))
  assert text == (
      'search: compiled in 50 s; memory 0.51 GB of 24.00 GB; 19,500 steps of '
      '2200 ms, about 11.9 h without tests')


def test_the_flag():
  loaded = config_lib.load(['--config=quickstart', '--plan'])
  assert loaded.options.plan
  assert not config_lib.load(['--config=quickstart']).options.plan


@pytest.mark.slow
def test_plan_of_a_whole_run(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  config = config_lib.load(['--config=quickstart']).config
  config.compilation_cache = ''
  config.search.cells = config.evaluate.cells = 3
  config.search.channels = config.evaluate.channels = 2
  assert main.show_plan(config) == 0
  lines = capsys.readouterr().err
  assert 'search: compiled in' in lines and 'evaluate/derived-0' in lines
  assert not list(tmp_path.iterdir())
