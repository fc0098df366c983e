"""Several processes agree, stop together and end together.

Here as objects and threads on one store; as real processes in
`test_hosts_runs.py`.
"""

import signal
import threading
import time
import types

import jax
import numpy as np
import pytest

from rome_jax import data, errors
from rome_jax.config import command_line
from rome_jax.data import splits
from rome_jax.devices import hosts
from rome_jax.devices import mesh as mesh_lib

# An end that a thread meets is raised in it; see `left`.
pytestmark = pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnhandledThreadExceptionWarning')


class Store:
  """The coordination service's key-value store, in this process."""

  def __init__(self):
    self.texts = {}
    self.changed = threading.Condition()

  def key_value_set(self, key, text, allow_overwrite=False):
    with self.changed:
      assert allow_overwrite or key not in self.texts
      self.texts[key] = text
      self.changed.notify_all()

  def blocking_key_value_get(self, key, timeout_in_ms):
    with self.changed:
      if self.changed.wait_for(
          lambda: key in self.texts, timeout_in_ms / 1000):
        return self.texts[key]
    raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: too late')

  def key_value_dir_get(self, folder):
    with self.changed:
      return [(key, text) for key, text in self.texts.items()
              if key.startswith(folder)]

  def key_value_delete(self, folder):
    with self.changed:
      self.texts = {key: text for key, text in self.texts.items()
                    if not key.startswith(folder)}


class Team:
  """Some processes, as threads; `left` has what ended them."""

  def __init__(self, count, heartbeat=60):
    self.store = Store()
    self.watches = [
        hosts.Watch(i, count, self.store, heartbeat) for i in range(count)]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for watch in self.watches:
      watch.close()

  def each(self, function):
    """[function(watch) of every process], at the same time."""
    found = [None] * len(self.watches)

    def work(i, watch):
      found[i] = function(watch)

    threads = [threading.Thread(target=work, args=item, daemon=True)
               for item in enumerate(self.watches)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(60)
      assert not thread.is_alive()
    return found


@pytest.fixture
def left(monkeypatch):
  """[(code, sentence)] of what would have ended a process."""
  ends = []

  def end(code, sentence):
    ends.append((code, sentence))
    raise SystemExit  # ends the thread alone

  monkeypatch.setattr(hosts, '_exit', end)
  monkeypatch.setattr(hosts, '_POLL', .02)
  monkeypatch.setattr(hosts, '_LINGER', .5)
  return ends


def wait_for(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(.01)


def test_process_0_decides_for_all(left):
  with Team(3) as team:
    for n in range(3):
      found = team.each(lambda watch, n=n: watch.meet(
          'sum', str(watch.process + n), lambda texts: '+'.join(texts)))
      assert found == [f'{n}+{n + 1}+{n + 2}'] * 3
    assert not [key for key in team.store.texts if '/meet/1/' in key]
  assert not left


def test_processes_that_do_different_things_are_found(left):
  with Team(2) as team:

    def work(watch):
      if watch.process:
        with pytest.raises(SystemExit):
          watch.leave(errors.LostError('gone'))
        return None
      with pytest.raises(errors.LostError, match='a.*b'):
        watch.meet('a', '', lambda texts: '')

    team.store.key_value_set('rome_jax/meet/0/1', 'b\n')
    team.each(work)


def test_all_stop_after_the_same_step(left):
  """Whoever is asked, however unequal the steps: no process passes it."""
  rng = np.random.default_rng(0)
  pauses = rng.uniform(0, .004, (3, 1000))
  with Team(3) as team:
    stops = [types.SimpleNamespace(requested=False, signal=None)
             for _ in range(3)]
    for watch, stop in zip(team.watches, stops):
      watch.local = stop

    def work(watch):
      agreed = hosts.AgreedStop(watch)
      for step in range(1000):
        time.sleep(pauses[watch.process, step])
        if watch.process == 1 and step == 20:
          stops[1].signal = signal.SIGTERM
          stops[1].requested = True
        if agreed.requested:
          return step, agreed.signal

    found = team.each(work)
  assert found == [found[0]] * 3
  assert found[0][0] >= 20 and found[0][1] is signal.SIGTERM
  assert not left


def test_a_silent_process_ends_the_others(left):
  with Team(3, heartbeat=1) as team:
    team.watches[2].close()
    wait_for(lambda: len(left) == 2)
  for code, sentence in left:
    assert code == 4 and 'process 2 is lost' in sentence


@pytest.mark.parametrize('error, code', [
    (errors.UserError('disk full'), 2), (errors.DivergedError('inf'), 3),
    (errors.LostError('other state'), 4),
    (ValueError('UNKNOWN: Gloo all-reduce failed: Connection closed'), 4),
    (ZeroDivisionError('by zero'), 1)])
def test_an_error_ends_all_with_its_code(left, error, code, capsys):
  with Team(3) as team:
    with pytest.raises(SystemExit):
      team.watches[1].leave(error)
    wait_for(lambda: len(left) == 3)
  assert {found for found, _ in left} == {code}
  assert len({sentence for _, sentence in left}) == 1
  assert str(error).split(':')[-1] in left[0][1]


def test_a_broken_collective_gives_the_others_reason(left):
  """Its own error says only that a connection closed."""
  with Team(2) as team:
    with pytest.raises(SystemExit):
      team.watches[1].leave(errors.UserError('the disk is full'))
    with pytest.raises(SystemExit):
      team.watches[0].leave(ValueError('Gloo: Connection closed by peer'))
  assert (2, 'process 1: the disk is full') in left[1:]


def test_one_process_needs_nothing():
  stop = object()
  assert hosts.agreed(stop) is stop
  assert hosts.is_first() and not hosts.several()
  assert hosts.from_first(lambda: (1, 2)) == (1, 2)
  hosts.compare('state', 'x')
  with hosts.joined(command_line.Options()):
    assert not hosts.several()


@pytest.mark.parametrize('flags, words', [
    (['--coordinator=a:1'], ['--coordinator', '--processes', '--process']),
    (['--process=1', '--processes=2'], ['--coordinator=HOST:PORT']),
    (['--distributed', '--coordinator=a:1', '--processes=2', '--process=0'],
     ['without --distributed']),
    (['--coordinator=a', '--processes=2', '--process=0'], ['=a ', 'PORT']),
    (['--coordinator=a:0', '--processes=2', '--process=0'], ['a:0', '65535']),
    (['--coordinator=a:1', '--processes=0', '--process=0'],
     ['--processes=0', '1 to']),
    (['--coordinator=a:1', '--processes=2', '--process=2'],
     ['--process=2', '0 to 1']),
    (['--distributed', '--heartbeat=0'], ['--heartbeat=0', '1 to']),
    (['--heartbeat=9'], ['--heartbeat=9', '--distributed']),
    (['--distribute'], ['--distribute', "'distributed'"]),
])
def test_bad_flags(flags, words):
  with pytest.raises(errors.UserError) as caught:
    command_line.load(['--config=quickstart', *flags])
  for word in words:
    assert word in str(caught.value)


def test_flags():
  options = command_line.load([
      '--config=quickstart', '--coordinator=[::1]:80', '--processes=4',
      '--process', '3', '--heartbeat=7', '--dry-run']).options
  assert options == command_line.Options(
      dry_run=True, distributed=True, coordinator='[::1]:80', processes=4,
      process=3, heartbeat=7)
  options = command_line.load(['--config=quickstart', '--distributed']).options
  assert options == command_line.Options(distributed=True)


# What a process reads.


def recording(count=40):
  """(a lazy split of images of many sizes, the list of what it read)."""
  rng = np.random.default_rng(1)
  images = [rng.integers(0, 256, (*rng.integers(12, 20, 2), 3), np.uint8)
            for _ in range(count)]
  seen = []

  def read(i):
    seen.append(i)
    return images[i]

  return splits.LazySplit(read, rng.integers(0, 3, count, np.int32)), seen


def dataset(split):
  return data.Dataset('x', split, split, 3, 16, 3, (.5,) * 3, (.25,) * 3)


@pytest.mark.parametrize('kind', data.KINDS)
@pytest.mark.parametrize('rows', [[0, 1, 2, 3], [9], [2, 3, 8, 9]], ids=str)
def test_some_rows_are_those_of_the_whole_batch(kind, rows):
  """To the bit, augmentation too, and no other image is read."""
  split, seen = recording()
  batches = data.Batches(
      split, None, 10, 7, data.make_transform(
          kind, dataset(split), train=True, cutout=4))
  for step in (0, 5):
    whole = batches(step)
    seen.clear()
    part = batches(step, np.array(rows))
    assert seen == batches.batch_indices(step)[rows].tolist()
    for name in whole:
      np.testing.assert_array_equal(part[name], whole[name][rows])


def test_some_rows_of_a_test():
  """The last batch of 7 images in threes has one image and two fillings."""
  split, seen = recording(7)
  batches = data.evaluation_batches(
      split, 3, data.make_transform('none', dataset(split), train=False))
  for i in range(3):
    whole = batches(i)
    for rows in ([0], [1, 2], [2]):
      seen.clear()
      part = batches(i, np.array(rows))
      assert set(seen) <= {3 * i + row for row in rows} | {6}
      for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][rows])


def test_rows_of_one_device():
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  rows = mesh_lib.local_rows(sharding, 5)
  np.testing.assert_array_equal(rows, np.arange(5))
  tree = {'x': np.arange(10.).reshape(5, 2)}
  found = mesh_lib.from_rows(tree, rows, 5, sharding)
  np.testing.assert_array_equal(found['x'], tree['x'])


@pytest.mark.parametrize('heartbeat', [1, 15, 100])
def test_jax_loses_patience_after_the_watch(heartbeat, monkeypatch):
  """JAX would end the process first, from C++ and without a sentence."""
  given = {}
  monkeypatch.setattr(jax.distributed, 'initialize', given.update)
  monkeypatch.setattr(jax.config, 'update', lambda name, value: None)
  hosts._initialize(command_line.Options(
      distributed=True, coordinator='localhost:1', processes=2, process=1,
      heartbeat=heartbeat))
  # The last sign that JAX saw of a process may be half of its limit old.
  earliest = given['heartbeat_timeout_seconds'] / 2
  beats = heartbeat * 1.1 + 2 * hosts._POLL
  assert earliest > beats + hosts._LINGER
