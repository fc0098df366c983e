"""Files that are not what they should be, and writers that were killed."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from rome_jax import errors, files


@pytest.mark.parametrize('content, words', [
    (b'', 'the file is empty'),
    (b' \n', 'the file is empty'),
    (b'{"seed": ', 'it ends too early; was it cut?'),
    (b'{"seed": 1', 'it ends too early; was it cut?'),
    (b'{"name": "c10', 'the text that begins at line 1, column 10, has no end'),
    (b"{'seed': 1}", '"\'seed\': 1}" is out of place at line 1, column 2'),
    (b'{"a": 1,\n "b" 2}', "'2}' is out of place at line 2, column 6"),
    (b'{"a": tru}', "'tru}' is out of place at line 1, column 7"),
    (b'{} {}', 'more text follows the value, from line 1, column 4'),
    (b'{"a": "\xe9"}', 'byte 8 is not UTF-8 text'),
    (b'[' * 200_000, 'it is nested too deeply'),
    (b'1' * 5000, 'it holds a number that is too long')])
def test_what_is_wrong_with_a_json_file(content, words, tmp_path):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  with pytest.raises(errors.UserError) as caught:
    files.read_json(path)
  assert str(caught.value) == f'{path} is not valid JSON: {words}'


def test_a_byte_order_mark_is_no_fault(tmp_path):
  (tmp_path / 'a.json').write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
  assert files.read_json(tmp_path / 'a.json') == {'a': 'é'}


def test_bytes_that_python_could_not_decode_are_written_as_they_were(tmp_path):
  text = b'r\xc3\xa9'.decode('ascii', 'surrogateescape')
  files.write_text(tmp_path / 'a', text)
  assert (tmp_path / 'a').read_text(encoding='utf-8') == 'ré'


def test_a_link_is_not_followed(tmp_path):
  """A folder from somebody else cannot lead to files elsewhere."""
  (tmp_path / 'precious').write_text('kept')
  (tmp_path / 'run').mkdir()
  for name in '.lock', 'metrics.jsonl':
    (tmp_path / 'run' / name).symlink_to(tmp_path / 'precious')
  with pytest.raises(errors.UserError, match='lock: it is a link'):
    with files.only_one(tmp_path / 'run'):
      pass
  with pytest.raises(errors.UserError, match='jsonl: it is a link'):
    files.open_own(tmp_path / 'run' / 'metrics.jsonl', 'ab')
  assert (tmp_path / 'precious').read_text() == 'kept'


def test_the_second_waits_as_long_as_it_is_told(tmp_path, capsys):
  with files.only_one(tmp_path / 'run'):
    with pytest.raises(errors.UserError, match='another process is running'):
      with files.only_one(tmp_path / 'run'):
        pass
    assert not capsys.readouterr().err
    with pytest.raises(errors.UserError, match='another process is running'):
      with files.only_one(tmp_path / 'run', patience=.3):
        pass
    assert capsys.readouterr().err.count('waiting for another process') == 1
  with files.only_one(tmp_path / 'run'):
    pass


def test_a_folder_that_is_made_anew_has_a_lock_of_its_own(tmp_path):
  """One process waits, and meanwhile somebody deletes the folder."""
  folder, refused = tmp_path / 'run', []

  def wait():
    with files.only_one(folder, patience=30.):
      try:
        with files.only_one(folder):
          refused.append(False)
      except errors.UserError:
        refused.append(True)

  waiting = threading.Thread(target=wait)
  with files.only_one(folder):
    waiting.start()
    time.sleep(.5)
    shutil.rmtree(folder)
    folder.mkdir()
  waiting.join()
  assert refused == [True]


def test_half_of_a_letter_is_not_written(tmp_path):
  with pytest.raises(errors.UserError, match='half of a letter'):
    files.write_text(tmp_path / 'a', 'x\ud800')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('body', [
    lambda: {}['seed'], lambda: 'a' + 1, lambda: 1 / 0, lambda: [][0],
    lambda: None.items(), lambda: next(iter(())), lambda: float('x')])
def test_values_that_no_run_writes(body):
  with pytest.raises(errors.UserError, match='^a.json is not as rome_jax'):
    with files.as_written('a.json'):
      body()


def test_a_mistake_of_the_users_stays_what_it_is():
  with pytest.raises(errors.UserError, match='^mine$'):
    with files.as_written('a.json'):
      raise errors.UserError('mine')


@pytest.mark.parametrize('make', [
    os.mkfifo, lambda path: path.symlink_to('/dev/zero')])
def test_a_file_whose_reading_never_ends(make, tmp_path):
  path = tmp_path / 'config.json'
  make(path)
  with pytest.raises(errors.UserError) as caught:
    files.read_json(path)
  assert str(caught.value) == (
      f'cannot read {path}: it is a pipe or a device, no file')


@pytest.mark.parametrize('has_reader', [False, True])
def test_a_pipe_is_not_written_to(has_reader, tmp_path):
  os.mkfifo(tmp_path / '.lock')
  reader = has_reader and os.open(
      tmp_path / '.lock', os.O_RDONLY | os.O_NONBLOCK)
  with pytest.raises(errors.UserError, match='lock: it is a pipe or a device'):
    with files.only_one(tmp_path):
      pass
  if reader:
    os.close(reader)


def test_a_file_that_is_too_long(tmp_path):
  with open(tmp_path / 'a.json', 'wb') as file:
    file.truncate(2**40)  # It takes no room on the disk.
  with pytest.raises(errors.UserError, match='more than 268,435,456 bytes'):
    files.read_json(tmp_path / 'a.json')
  (tmp_path / 'b').write_bytes(b'123')
  assert files.read_bytes(tmp_path / 'b', most=3) == b'123'
  with pytest.raises(errors.UserError, match='b: it has more than 2 bytes'):
    files.read_bytes(tmp_path / 'b', most=2)


def test_a_file_that_is_missing(tmp_path):
  assert files.read_bytes(tmp_path / 'a', missing=b'none') == b'none'
  with pytest.raises(errors.UserError, match='a: No such file'):
    files.read_bytes(tmp_path / 'a')


def test_what_a_killed_writer_left_is_removed(tmp_path):
  killed = subprocess.run([sys.executable, '-c', """if True:
      import os, signal, sys
      from rome_jax import files
      os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
      files.write_text(sys.argv[1], 'half')
      """, tmp_path / 'a.json'], timeout=60)
  assert killed.returncode == -signal.SIGKILL
  (left,) = tmp_path.iterdir()
  others = {'.a.json.original', '.a.json.1.tmp', 'a.json.12345678.tmp',
            '.b.json.12345678.tmp', '.a_json.12345678.tmp'}
  for name in others:
    (tmp_path / name).write_text('kept')
  files.write_text(tmp_path / 'c.json', 'other')
  assert left.exists()  # Another file may have a writer of its own.
  files.write_text(tmp_path / 'a.json', 'whole')
  assert {path.name for path in tmp_path.iterdir()} == {
      'a.json', 'c.json'} | others


def test_a_writer_that_lives_keeps_its_temporary_file(tmp_path, monkeypatch):
  path, replace = tmp_path / 'a', os.replace
  names = []

  def slow(source, target):
    names.append(source)
    if len(names) == 1:  # A second writer, right before the first is done.
      files.write_text(path, 'second')
    replace(source, target)

  monkeypatch.setattr(os, 'replace', slow)
  files.write_text(path, 'first')
  assert len(names) == 2 and path.read_text() == 'first'
  assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_taken_for_a_leftover_is_made_again(
    tmp_path, monkeypatch):
  """Another writer may find it before its own has locked it."""
  flock, taken = fcntl.flock, []

  def late(handle, how):
    if not taken:
      taken.extend(tmp_path.iterdir())
      taken[0].unlink()
    flock(handle, how)

  monkeypatch.setattr(fcntl, 'flock', late)
  files.write_text(tmp_path / 'a', 'text')
  assert taken and list(tmp_path.iterdir()) == [tmp_path / 'a']


def test_many_writers_of_one_file(tmp_path):
  failed = []

  def write(text):
    try:
      for _ in range(30):
        files.write_text(tmp_path / 'a', text)
    except errors.UserError as error:
      failed.append(error)

  threads = [threading.Thread(target=write, args=[str(i)]) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not failed
  assert list(tmp_path.iterdir()) == [tmp_path / 'a']
