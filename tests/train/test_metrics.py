"""The metrics file of a resumed run, and the progress line."""

import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax import errors
from rome_jax.train import metrics, notes


def make_clock(start=0.0, tick=1.0):
  """A clock that moves by `tick` seconds each time it is read."""
  now = [start - tick]

  def clock():
    now[0] += tick
    return now[0]

  return clock


def writer(workdir, resume_step=None, **kwargs):
  return metrics.MetricsWriter(
      workdir, resume_step, clock=make_clock(), **kwargs)


def untimed(workdir):
  return [{k: v for k, v in row.items() if k != 'time'}
          for row in metrics.read(workdir)]


def event_records(workdir, phase):
  """(step, tag or session status) of all events, read without tensorboardX."""
  from tensorboardX.proto import event_pb2
  found = []
  for path in sorted((workdir / 'events' / phase).glob('events.*')):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (length,) = struct.unpack('<Q', data[at:at + 8])
      event = event_pb2.Event.FromString(data[at + 12:at + 12 + length])
      at += 16 + length
      for value in event.summary.value:
        found.append((event.step, value.tag, value.simple_value))
      if event.HasField('session_log'):
        found.append((event.step, 'session', event.session_log.status))
  return found


def test_scalars_of_all_kinds_become_strict_json(tmp_path):
  with writer(tmp_path) as out:
    out.write('search', np.int64(3), {
        'jax': jnp.float32(0.1), 'numpy': np.float32(0.1),
        'half': jnp.bfloat16(0.5), 'one': jnp.ones((1,)), 'count': np.int32(7),
        'python': 1 / 3, 'nan': jnp.nan, 'inf': -math.inf, 'flag': True,
        'none': None})
  line = (tmp_path / 'metrics.jsonl').read_text()
  assert line.endswith('\n') and line.count('\n') == 1

  def refuse(name):
    raise AssertionError(name)

  row = json.loads(line, parse_constant=refuse)
  assert row == {
      'phase': 'search', 'step': 3, 'time': 0.0, 'jax': 0.1, 'numpy': 0.1,
      'half': 0.5, 'one': 1.0, 'count': 7, 'python': 1 / 3, 'nan': None,
      'inf': None, 'flag': 1, 'none': None}
  assert np.float32(row['jax']) == np.float32(0.1)


@pytest.mark.parametrize('scalars', [{'a': np.zeros(2)}, {'step': 1}])
def test_wrong_scalars_write_nothing(tmp_path, scalars):
  with writer(tmp_path) as out, pytest.raises(ValueError):
    out.write('search', 1, scalars)
  assert metrics.read(tmp_path) == []


def test_a_line_is_there_at_once(tmp_path):
  with writer(tmp_path, tensorboard=False) as out:
    out.write('search', 1, {'a': 1.0})
    assert untimed(tmp_path) == [{'phase': 'search', 'step': 1, 'a': 1.0}]
  assert not (tmp_path / 'events').exists()


@pytest.mark.parametrize('half', [b'', b'{"phase": "evaluate/a", "st', b'\n'])
def test_resumed_file_equals_uninterrupted(tmp_path, half):
  plan = [('search', s) for s in range(1, 6)]
  plan += [('retrain/a', s) for s in range(1, 6)]

  def run(workdir, steps, resume_step=None):
    with writer(workdir, resume_step, tensorboard=False) as out:
      for phase, step in steps:
        out.write(phase, step, {'loss': step / 7})
    return (workdir / 'metrics.jsonl')

  whole = run(tmp_path / 'whole', plan)
  cut = run(tmp_path / 'cut', plan[:9])  # killed after evaluate/a step 4
  cut.write_bytes(cut.read_bytes() + half)
  run(tmp_path / 'cut', plan[7:], {'retrain/a': 2})
  assert untimed(cut.parent) == untimed(whole.parent)
  assert cut.read_bytes().count(b'\n') == 10


def test_half_line_is_repaired_without_a_rewind(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"phase": "a", "step": 1}\n{"phase": "a", "step": 2}')
  with writer(tmp_path, tensorboard=False) as out:
    out.write('a', 3, {})
  assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2, 3]


def test_rewind_to_before_the_start_and_untouched_file(tmp_path):
  with writer(tmp_path, tensorboard=False) as out:
    out.write('a', 0, {})
    out.write('b', 5, {})
    inode = (tmp_path / 'metrics.jsonl').stat().st_ino
    out.rewind('a', 0)  # nothing to forget: the file is not rewritten
    assert (tmp_path / 'metrics.jsonl').stat().st_ino == inode
    out.rewind('a', -1)
    out.write('a', 0, {})
    out.sync()
  assert [(r['phase'], r['step']) for r in metrics.read(tmp_path)] == [
      ('b', 5), ('a', 0)]


def test_read_of_missing_and_damaged_files(tmp_path):
  assert metrics.read(tmp_path) == []
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'')
  assert metrics.read(tmp_path) == []
  path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
  with pytest.raises(errors.UserError, match='line 2'):
    metrics.read(tmp_path)
  path.write_bytes(b'{"step": "2"}\n{"step": 3}\n')
  with pytest.raises(errors.UserError, match='line 1.*no whole number'):
    metrics.read(tmp_path)
  path.write_bytes(b'{"step": 1}\n\xff\x00')
  assert metrics.read(tmp_path) == [{'step': 1}]


def test_unwritable_folder_is_one_sentence(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='cannot'):
    with writer(tmp_path / 'file' / 'run') as out:
      out.write('search', 1, {})


@pytest.mark.parametrize('replaced', [False, True])
def test_a_lost_folder_is_noticed_before_a_save(tmp_path, replaced):
  """Another run may have begun there."""
  with writer(tmp_path / 'run', tensorboard=False) as lines:
    lines.write('search', 1, {'loss': 1.})
    lines.sync()
    shutil.rmtree(tmp_path / 'run')
    if replaced:
      with writer(tmp_path / 'run', tensorboard=False) as others:
        others.write('search', 1, {'loss': 2.})
    with pytest.raises(errors.UserError, match='was deleted or replaced'):
      lines.sync()


def test_tensorboard_events_and_purge(tmp_path):
  with writer(tmp_path) as out:
    for step in (1, 2, 3):
      out.write('retrain/a', step, {'loss': float(step), 'bad': math.nan})
    out.rewind('retrain/a', 1)
    out.write('retrain/a', 2, {'loss': 20.0})
  records = event_records(tmp_path, 'retrain/a')
  assert [r for r in records if r[1] != 'session'] == [
      (1, 'loss', 1.0), (2, 'loss', 2.0), (3, 'loss', 3.0), (2, 'loss', 20.0)]
  assert (2, 'session', 1) in records  # START: hides the old steps 2 and 3


def test_events_on_a_full_disk_are_one_sentence_and_never_a_wait(tmp_path):
  """A thread that had met one left all later events waiting for it."""
  program = (
      'import resource, sys\n'
      'from rome_jax import errors\n'
      'from rome_jax.train import metrics\n'
      'with metrics.MetricsWriter(sys.argv[1]) as out:\n'
      "  out.write('search', 0, {'loss': 0.})\n"
      '  resource.setrlimit(resource.RLIMIT_FSIZE, (3000, -1))\n'
      '  try:\n'
      '    for step in range(1, 200):\n'
      "      names = [f'loss{i}' for i in range(20)]\n"
      "      out.write('search', step, dict.fromkeys(names, 1.))\n"
      '      out.sync()\n'
      '  except errors.UserError as error:\n'
      '    print(error)\n')
  done = subprocess.run([sys.executable, '-c', program, str(tmp_path)],
                        capture_output=True, text=True, timeout=100)
  assert done.stderr == '' and done.returncode == 0
  assert done.stdout.count('\n') == 1
  assert 'cannot write' in done.stdout and 'File too large' in done.stdout


class Terminal(io.StringIO):

  def isatty(self):
    return True


def test_plain_lines_are_rare_and_the_last_is_shown():
  stream = io.StringIO()
  with metrics.Progress(
      100, label='search', images_per_unit=64, stream=stream, interval=10.0,
      clock=make_clock()) as progress:
    for step in range(1, 101):
      progress.update(step, loss=jnp.float32(0.25))
  lines = stream.getvalue().splitlines()
  assert len(lines) == 11  # steps 1, 11, ..., 91 and 100
  assert lines[0] == 'search    1%  step 1/100  loss 0.25'
  assert lines[1] == (
      'search   11%  step 11/100  64 images/s  01:29 left  loss 0.25')
  assert lines[-1] == (
      'search  100%  step 100/100  64 images/s  00:00 left  loss 0.25')
  assert '\r' not in stream.getvalue()


def test_interrupted_plain_progress_shows_its_last_step():
  stream = io.StringIO()
  progress = metrics.Progress(100, stream=stream, clock=make_clock())
  progress.update(1)
  progress.update(3)
  progress.note('stopping')
  progress.close()
  progress.close()
  lines = stream.getvalue().splitlines()
  assert lines[1] == 'stopping'
  assert len(lines) == 3 and 'step 3/100' in lines[2]


def test_a_bar_on_a_terminal():
  stream = Terminal()
  with metrics.Progress(
      4, unit='epoch', label='x', images_per_unit=7200, stream=stream,
      clock=make_clock(tick=3600.0)) as progress:
    progress.update(1)
    progress.update(2, loss=1.0, accuracy=0.5)
    progress.note('hello')
    progress.retarget(3)
    progress.update(3)
  text = stream.getvalue()
  frames = text.replace('\n', '\r').split('\r')
  assert any('x:  25%|' in f and '1/4 [' in f for f in frames)
  assert any('2/4 [' in f and '2 images/s, loss 1, accuracy 0.5' in f
             for f in frames)
  assert 'hello' in text.replace('\r', '\n').splitlines()
  assert frames[-2].startswith('x: 100%|') and '3/3' in frames[-2]
  assert text.endswith('\n')


def test_a_notebook_has_a_bar(monkeypatch, capsys):
  shell = types.SimpleNamespace(config={'IPKernelApp': {}})
  monkeypatch.setitem(sys.modules, 'IPython',
                      types.SimpleNamespace(get_ipython=lambda: shell))
  with metrics.Progress(2, label='x') as progress:
    progress.update(1)
    progress.update(2)
  assert 'x: 100%|' in capsys.readouterr().err


def test_unused_progress_prints_nothing():
  stream = Terminal()
  metrics.Progress(0, stream=stream).close()
  assert stream.getvalue() == ''


def test_time_left():
  stream = io.StringIO()
  progress = metrics.Progress(
      10, stream=stream, interval=0.0, clock=make_clock(tick=1000.0))
  progress.update(1)
  progress.update(2)
  assert '2:13:20 left' in stream.getvalue()


@pytest.mark.parametrize('make', [
    os.mkfifo, lambda path: path.symlink_to('/dev/zero')])
def test_a_file_whose_reading_never_ends(make, tmp_path):
  make(tmp_path / 'metrics.jsonl')
  with pytest.raises(errors.UserError, match='jsonl: it is a pipe or a device'):
    metrics.read(tmp_path)
  with pytest.raises(errors.UserError, match='jsonl: it is a pipe or a device'):
    metrics.MetricsWriter(tmp_path)
  (tmp_path / 'phases').mkdir()
  make(tmp_path / 'phases' / 'derived-0.json')
  for read in lambda: notes.read(tmp_path, 'derived-0'), (
      lambda: notes.retraining(tmp_path)):
    with pytest.raises(errors.UserError, match='derived-0.json: it is a'):
      read()


def test_a_line_that_is_nested_too_deeply(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('[' * 200_000 + '\n{"step": 1}\n')
  with pytest.raises(errors.UserError, match='line 1, is not a line'):
    metrics.read(tmp_path)
