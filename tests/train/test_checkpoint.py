import logging
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax import errors, files
from rome_jax.train import checkpoint


class Momentum(NamedTuple):
  trace: dict
  count: int


def make_state(seed=0):
  rng = np.random.default_rng(seed)
  return {
      'params': {'w': jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
                 'half': jnp.asarray(rng.normal(size=5), jnp.bfloat16),
                 'none': None, 'without': jnp.zeros((0, 2))},
      'opt': (Momentum({'w': jnp.asarray(rng.normal(size=(3, 4)),
                                         jnp.float32)}, 7 + seed), ()),
      'mask': jnp.asarray([True, False]),
      'order': rng.permutation(5),
      'epoch': 2 + seed, 'tau': .1 + seed, 'done': seed > 0}


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    # Orbax has no type of its own for a scalar; we give it back.
    assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
    assert isinstance(b, jax.Array | np.ndarray) or type(a) is type(b)
    assert np.asarray(a).dtype == np.asarray(b).dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope='module')
def two_saved(tmp_path_factory):
  """A folder with checkpoints 1 (seed 1) and 2 (seed 2); not to be changed."""
  folder = tmp_path_factory.mktemp('two') / 'checkpoints'
  with checkpoint.Checkpoints(folder, keep=2) as checkpoints:
    checkpoints.save(1, make_state(1))
    checkpoints.save(2, make_state(2))
  return folder


def copy_of(folder, tmp_path):
  return pathlib.Path(shutil.copytree(folder, tmp_path / 'copy'))


def test_nothing_saved(tmp_path):
  with checkpoint.Checkpoints(tmp_path / 'none') as checkpoints:
    assert checkpoints.restore(make_state()) is None
    assert checkpoints.steps() == []
  assert not (tmp_path / 'none').exists()


def test_round_trip_bit_for_bit(two_saved):
  with checkpoint.Checkpoints(two_saved) as checkpoints:
    step, state = checkpoints.restore(make_state(0))
    assert step == 2 and checkpoints.damaged == ()
  assert_same(state, make_state(2))


def test_round_trip_into_abstract_state_and_shardings(tmp_path):
  state = {'w': jnp.arange(8.), 'none': jnp.zeros((0,))}
  mesh = jax.sharding.Mesh(jax.devices()[:1], ('x',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  target = {'w': jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding),
            'none': jax.ShapeDtypeStruct((0,), jnp.float32)}
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(0, state)
    step, restored = checkpoints.restore(target)
  assert step == 0
  assert restored['w'].sharding == sharding
  assert_same(restored, state)


def test_keeps_the_newest(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (5, 30, 100_000_000, 20):
      checkpoints.save(step, {'step': step})
    checkpoints.wait()
    assert checkpoints.steps() == [30, 100_000_000]
    assert checkpoints.restore({'step': 0}) == (
        100_000_000, {'step': 100_000_000})


def test_same_step_is_replaced(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(3, {'x': 1})
    checkpoints.save(3, {'x': 2})
    assert checkpoints.restore({'x': 0}) == (3, {'x': 2})
  assert [path.name for path in tmp_path.iterdir()] == ['00000003']


def test_save_does_not_block_and_survives_donation(tmp_path, monkeypatch):
  release = threading.Event()
  write = checkpoint.Checkpoints._write

  def slow_write(self, *args):
    assert release.wait(30)
    write(self, *args)

  monkeypatch.setattr(checkpoint.Checkpoints, '_write', slow_write)
  erase = jax.jit(lambda x: x * 0, donate_argnums=0)
  device, host = jnp.arange(1000.) + 1, np.arange(3)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {'device': device, 'host': host})
    erase(device).block_until_ready()
    host[:] = 0
    assert device.is_deleted() and checkpoints.steps() == []
    release.set()
    _, state = checkpoints.restore({'device': jnp.zeros(1000), 'host': host})
  np.testing.assert_array_equal(state['device'], np.arange(1000.) + 1)
  np.testing.assert_array_equal(state['host'], np.arange(3))


def truncate(path):
  path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def empty(path):
  path.write_bytes(b'')


def flip_a_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize('damage', [
    truncate, empty, flip_a_bit, pathlib.Path.unlink])
def test_each_damaged_file_falls_back(damage, two_saved, tmp_path, caplog):
  names = [path.relative_to(two_saved) for path in
           sorted((two_saved / '00000002').rglob('*')) if path.is_file()]
  assert len(names) > 5
  for name in names:
    folder = copy_of(two_saved, tmp_path)
    damage(folder / name)
    caplog.clear()
    with checkpoint.Checkpoints(folder) as checkpoints:
      step, state = checkpoints.restore(make_state(0))
      assert [step for step, _ in checkpoints.damaged] == [2]
    assert step == 1, name
    assert_same(state, make_state(1))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert '00000002 is damaged' in record.getMessage()
    assert '\n' not in record.getMessage()
    shutil.rmtree(folder)


def test_empty_folder_of_a_step_falls_back(two_saved, tmp_path):
  folder = copy_of(two_saved, tmp_path)
  (folder / '00000003').mkdir()
  with checkpoint.Checkpoints(folder) as checkpoints:
    assert checkpoints.restore(make_state())[0] == 2


def test_all_damaged_is_a_user_error(two_saved, tmp_path):
  folder = copy_of(two_saved, tmp_path)
  for path in folder.rglob('manifest.json'):
    truncate(path)
  with checkpoint.Checkpoints(folder) as checkpoints:
    with pytest.raises(errors.UserError, match='every checkpoint') as caught:
      checkpoints.restore(make_state())
  assert str(folder) in str(caught.value)
  assert 'delete that folder' in str(caught.value)


def test_good_checkpoint_outlives_the_damaged_one(two_saved, tmp_path):
  # keep=1 and a damaged step 9: the save of step 3 must not count it.
  folder = copy_of(two_saved, tmp_path)
  shutil.copytree(folder / '00000002', folder / '00000009')
  truncate(folder / '00000009' / 'manifest.json')
  with checkpoint.Checkpoints(folder, keep=1) as checkpoints:
    assert checkpoints.restore(make_state())[0] == 2
    checkpoints.save(3, make_state(3))
    checkpoints.wait()
    assert checkpoints.steps() == [3]
    assert checkpoints.restore(make_state())[0] == 3


@pytest.mark.parametrize('change, words', [
    (lambda s: s['params'].update(w=jnp.zeros((3, 5))),
     r'params\.w is float32\[3,4\] there and float32\[3,5\] here'),
    (lambda s: s['params'].update(w=jnp.zeros((3, 4), jnp.bfloat16)),
     r'params\.w is float32\[3,4\] there and bfloat16\[3,4\] here'),
    (lambda s: s.update(new=jnp.zeros(2)), r'new is absent there and float32'),
    (lambda s: s.pop('mask'), r'mask is bool\[2\] there and absent here'),
    (lambda s: s['params'].update(without=jnp.zeros((0, 3))),
     r'params\.without is float32\[0,2\] there'),
])
def test_another_state_is_a_user_error(change, words, two_saved):
  target = make_state()
  change(target)
  with checkpoint.Checkpoints(two_saved) as checkpoints:
    with pytest.raises(errors.UserError, match=words):
      checkpoints.restore(target)


def test_half_written_folder_is_ignored_and_removed(two_saved, tmp_path):
  folder = copy_of(two_saved, tmp_path)
  partial = folder / '00000003.partial'
  shutil.copytree(folder / '00000002', partial)
  (partial / 'manifest.json').unlink()
  with checkpoint.Checkpoints(folder, keep=9) as checkpoints:
    assert checkpoints.restore(make_state())[0] == 2
    assert partial.exists()
    checkpoints.save(4, make_state())
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 4]
  assert not partial.exists()


def test_prng_keys_are_refused(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(TypeError, match=r'rng is a PRNG key'):
      checkpoints.save(1, {'rng': jax.random.key(0)})


def test_keep_must_be_positive(tmp_path):
  with pytest.raises(errors.UserError, match='keep_checkpoints=0'):
    checkpoint.Checkpoints(tmp_path, keep=0)


def test_unusable_folder_is_a_user_error(tmp_path):
  (tmp_path / 'file').write_text('')
  checkpoints = checkpoint.Checkpoints(tmp_path / 'file' / 'checkpoints')
  checkpoints.save(1, {'x': 1})
  with pytest.raises(errors.UserError, match='Not a directory'):
    checkpoints.close()
  with pytest.raises(errors.UserError, match='Not a directory'):
    checkpoint.Checkpoints(tmp_path / 'file').steps()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_read_only_folder_is_a_user_error(tmp_path):
  tmp_path.chmod(0o500)
  checkpoints = checkpoint.Checkpoints(tmp_path / 'checkpoints')
  checkpoints.save(1, {'x': 1})
  with pytest.raises(errors.UserError, match='Permission denied'):
    checkpoints.close()


def run_python(source, *args, **kwargs):
  return subprocess.Popen(
      [sys.executable, '-W', 'error', '-c', textwrap.dedent(source),
       *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, **kwargs)


def test_full_disk_is_one_sentence_and_nothing_is_lost(tmp_path):
  # A limit on the size of files stands for the disk: the same code path in
  # orbax, another errno. A process of its own shows all that is printed.
  process = run_python('''
      import os, resource, sys
      import numpy as np
      from rome_jax import errors, files
      from rome_jax.train import checkpoint
      state = {'w': np.random.default_rng(0).normal(size=50_000)}
      checkpoints = checkpoint.Checkpoints(sys.argv[1])
      checkpoints.save(1, state)
      checkpoints.wait()
      resource.setrlimit(
          resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
      checkpoints.save(2, state)
      try:
        checkpoints.wait()
      except errors.UserError as error:
        print(error)
      print(os.listdir(sys.argv[1]))
      print(checkpoints.restore(state)[0])
      checkpoints.close()
      ''', tmp_path)
  out, err = process.communicate(timeout=60)
  assert err == ''
  assert out.splitlines() == [
      f'cannot write checkpoint {tmp_path}/00000002: File too large',
      "['00000001']", '1']


def test_kill_while_saving_leaves_a_usable_checkpoint(tmp_path):
  process = run_python('''
      import sys
      import numpy as np
      from rome_jax.train import checkpoint
      checkpoints = checkpoint.Checkpoints(sys.argv[1])
      for step in range(1, 10_000):
        checkpoints.save(step, {'x': np.full(30_000, step)})
        print(step, flush=True)
      ''', tmp_path)
  for line in process.stdout:
    if int(line) == 4:  # Step 3 is complete, step 4 is being written.
      break
  time.sleep(.02)
  process.kill()
  process.communicate()
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    step, state = checkpoints.restore({'x': np.zeros(30_000, int)})
    assert step >= 3 and checkpoints.damaged == ()
    np.testing.assert_array_equal(state['x'], step)
    checkpoints.save(step + 1, state)
  assert not list(tmp_path.glob('*.partial'))


def test_a_leap_of_the_number_falls_back(two_saved, tmp_path):
  """A checkpoint under another step's number would skip what lies between."""
  folder = copy_of(two_saved, tmp_path)
  (folder / '00000002').rename(folder / '00000020')
  with checkpoint.Checkpoints(folder) as checkpoints:
    assert checkpoints.restore(make_state())[0] == 1
    assert checkpoints.damaged == ((20, 'it is that of step 2'),)


def rewrite(folder, change):
  """Changes a manifest, with a digest that fits: somebody else's checkpoint."""
  body = files.read_json(folder / 'manifest.json')['body']
  body = change(body) or body
  files.write_json(folder / 'manifest.json', {
      'sha256': checkpoint._body_digest(body), 'body': body})


def large(body):
  for leaf in body['leaves']:
    leaf[1] = [2**40 // 8]


@pytest.mark.parametrize('change, words', [
    (lambda body: [1], 'unreadable'),
    (lambda body: body.pop('leaves') and None, 'unreadable'),
    (lambda body: body.pop('files') and None, 'unreadable'),
    (lambda body: body.update(leaves=7), 'the leaves in manifest.json'),
    (lambda body: body.update(leaves=[1]), 'the leaves in manifest.json'),
    (lambda body: body['leaves'][0].pop() and None,
     'the leaves in manifest.json'),
    (lambda body: body['leaves'].append(body['leaves'][0]), 'share a name'),
    *[(lambda body, i=i, value=value: body['leaves'][0].__setitem__(i, value),
       'the leaves in manifest.json')
      for i, value in [(0, 1), (1, 3), (1, [-1]), (1, [True]), (1, [1.5]),
                       (1, [1] * 65), (2, 'nope'), (2, 'object'), (2, 4),
                       (2, '(9,)f4'), (2, 'f4,f4')]],
    (large, 'cannot be in'),
    (lambda body: body['leaves'].append(['empty', [0, 2**70], 'bool']),
     'cannot be in'),
    (lambda body: body.update(files=[1]), 'the files in manifest.json'),
    *[(lambda body, name=name: body['files'].update({name: '0'}), words)
      for name, words in [
          ('/dev/zero', 'not inside'), ('../../x', 'not inside'),
          ('a\0b', 'not inside'), ('state', 'state: '), ('\ud800', 'surrogate'),
          ('none', 'none: No such file')]],
])
def test_a_manifest_that_no_run_wrote(change, words, two_saved, tmp_path):
  folder = copy_of(two_saved, tmp_path)
  rewrite(folder / '00000002', change)
  with checkpoint.Checkpoints(folder) as checkpoints:
    assert checkpoints.restore(make_state())[0] == 1
    ((step, reason),) = checkpoints.damaged
  assert step == 2 and words in reason
  with pytest.raises(errors.UserError, match='cannot use checkpoint') as caught:
    checkpoint.read_tree(folder, 'params')
  assert words in str(caught.value)


def zero_device(path):
  path.symlink_to('/dev/zero')


@pytest.mark.parametrize('make', [os.mkfifo, zero_device])
@pytest.mark.parametrize('name', [
    'manifest.json', 'state/_METADATA', 'state/_sharding'])
def test_a_file_of_a_checkpoint_whose_reading_never_ends(
    make, name, two_saved, tmp_path):
  folder = copy_of(two_saved, tmp_path)
  (folder / '00000002' / name).unlink(missing_ok=True)
  make(folder / '00000002' / name)
  with checkpoint.Checkpoints(folder) as checkpoints:
    assert checkpoints.restore(make_state())[0] == 1


@pytest.mark.parametrize('text', ['[1]', '{}', '{"tree_metadata": 1}'])
def test_orbax_metadata_that_no_run_wrote(text, two_saved, tmp_path):
  folder = copy_of(two_saved, tmp_path)
  path = folder / '00000002' / 'state' / '_METADATA'
  path.write_text(text)
  rewrite(folder / '00000002', lambda body: body['files'].update(
      {'state/_METADATA': checkpoint._digest(path)}))
  with checkpoint.Checkpoints(folder) as checkpoints:
    assert checkpoints.restore(make_state())[0] == 1


@pytest.mark.parametrize('other', [
    np.zeros(4), np.zeros(3, np.float32), np.zeros((3, 1))])
def test_arrays_other_than_the_manifest_says(other, tmp_path):
  """Orbax returns them as they are."""
  target = {'x': np.zeros(3)}
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, target)
    checkpoints.save(2, {'x': other})
    checkpoints.wait()
    rewrite(tmp_path / '00000002',
            lambda body: body.update(leaves=[['x', [3], 'float64']]))
    assert checkpoints.restore(target)[0] == 1
    assert checkpoints.damaged == (
        (2, 'state holds another x than manifest.json'),)


def test_arrays_that_compress_well_are_read(tmp_path):
  """A bound of the size must let zeros pass, and large ones most of all."""
  state = {'a': np.zeros(2**25, np.uint8), 'b': np.zeros((0, 10**6), bool),
           'c': np.full(2**22, 3.)}
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    assert_same(checkpoints.restore(state)[1], state)


def test_a_name_that_is_both_an_array_and_a_branch(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {'x': {'a': np.ones(2), 'a.b': np.ones(3)}})
  with pytest.raises(errors.UserError, match='a part of x.a.b is an array'):
    checkpoint.read_tree(tmp_path, 'x')


def test_arrays_that_do_not_fit_into_memory(two_saved, monkeypatch):
  def full(*args):
    raise MemoryError
  monkeypatch.setattr(np, 'empty', full)
  with pytest.raises(errors.UserError, match='do not fit into memory'):
    checkpoint.read_tree(two_saved, 'params')


@pytest.mark.parametrize('calls', [1, 2, 3])
def test_a_kill_while_a_step_is_replaced_leaves_it(
    calls, tmp_path, monkeypatch):
  """Of a single checkpoint, the old or the new one is there at any moment."""

  class Killed(BaseException):
    pass

  def kill_at(function):
    def wrapped(*args, **kwargs):
      nonlocal calls
      calls -= 1
      if not calls:
        raise Killed
      return function(*args, **kwargs)
    return wrapped

  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(3, {'x': 1})
    checkpoints.wait()
    partial = partial_of(checkpoints, 3, {'x': 2})
    with monkeypatch.context() as patch:
      # Both renames, and the removal of what was replaced.
      patch.setattr(os, 'rename', kill_at(os.rename))
      patch.setattr(shutil, 'rmtree', kill_at(shutil.rmtree))
      with pytest.raises(Killed):
        checkpoint._replace_folder(
            partial, tmp_path / '00000003', tmp_path / '00000003.old')
    step, state = checkpoints.restore({'x': 0})
    assert step == 3 and state['x'] in (1, 2)
    assert checkpoint.read_tree(tmp_path, 'x') == {'': state['x']}
    checkpoints.save(3, {'x': 4})
    assert checkpoints.restore({'x': 0}) == (3, {'x': 4})
  assert [path.name for path in tmp_path.iterdir()] == ['00000003']


def partial_of(checkpoints, step, state):
  """A written checkpoint that has not got its name yet."""
  folder = checkpoints.directory / f'{step:08d}.partial'
  checkpoint._write_folder(folder, step, checkpoint._to_host(state))
  return folder


def test_a_replaced_checkpoint_goes_with_its_step(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(3, {'x': 1})
    checkpoints.wait()
    (tmp_path / '00000003').rename(tmp_path / '00000003.old')
    assert checkpoints.steps() == [3]
    checkpoints.save(4, {'x': 2})
  assert [path.name for path in tmp_path.iterdir()] == ['00000004']
