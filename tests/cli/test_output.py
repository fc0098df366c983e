"""What is printed where nobody, or no disk, takes it."""

import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

import pytest

from rome_jax import cli

ROOT = pathlib.Path(__file__).parents[2]
FULL = pathlib.Path('/dev/full')  # Linux has it
TASK = """
import sys
from rome_jax import cli
from rome_jax.train import metrics
cli.make_output_safe()
with metrics.Progress(1000, interval=0.) as bar:
  for i in range(1, 1001):
    bar.update(i, loss=.5)
    if i in (1, 500):
      bar.note('a line')
      print('a line', flush=True)
    if i == 1:
      sys.stdin.readline()  # The terminal goes.
print('the last line')
open(sys.argv[1], 'w').close()
"""


def start(*argv, before='', **options):
  """Starts Python; `before` is code that prepares the process.

  Not as `preexec_fn`, which forks: JAX, if another test has loaded it, warns.
  """
  launcher = ['-c', f'import os, signal, sys\n{before}\n'
              'os.execv(sys.executable, [sys.executable, *sys.argv[1:]])']
  return subprocess.Popen(
      [sys.executable, *(launcher if before else []), *map(str, argv)],
      cwd=ROOT, text=True,
      **{'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE,
         'stderr': subprocess.PIPE} | options)


def goes_on(process, done):
  process.communicate('\n', timeout=60)
  assert process.returncode == 0 and done.exists()


@pytest.mark.skipif(not FULL.exists(), reason='needs /dev/full')
def test_a_full_log_ends_nothing(tmp_path):
  with open(FULL, 'w') as full:
    goes_on(start('-c', TASK, tmp_path / 'done', stdout=full, stderr=full),
            tmp_path / 'done')


def test_a_reader_that_is_gone_ends_nothing(tmp_path):
  process = start('-c', TASK, tmp_path / 'done', stderr=subprocess.STDOUT)
  assert process.stdout.readline()
  process.stdout.close()
  process.stdin.write('\n')
  process.stdin.close()
  assert process.wait(60) == 0 and (tmp_path / 'done').exists()


def test_a_terminal_that_is_gone_ends_nothing(tmp_path):
  """With the bar that a terminal gets."""
  ours, theirs = pty.openpty()
  process = start('-c', TASK, tmp_path / 'done', stdout=theirs, stderr=theirs)
  os.close(theirs)
  assert os.read(ours, 1)
  os.close(ours)
  goes_on(process, tmp_path / 'done')


@pytest.mark.parametrize('flags', [[], ['-u']])
def test_streams_that_are_closed_end_nothing(flags, tmp_path):
  """Nor does a file get the number of one, and what C libraries print."""
  task = TASK.replace('sys.stdin.readline()', 'number = open("README.md")') + (
      'assert number.fileno() > 2\nopen(sys.argv[1] + "-too", "w").close()\n')
  process = start(*flags, '-c', task, tmp_path / 'done',
                  before='os.closerange(0, 3)')
  goes_on(process, tmp_path / 'done')
  assert (tmp_path / 'done-too').exists()


def test_a_log_may_have_space_again():
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  with cli._Output(writing, 'w') as output:
    for _ in range(40):  # Longer than a pipe.
      assert output.write(b'a' * 2**12) == 2**12
    assert isinstance(output.error, BlockingIOError)
    os.read(reading, 2**17)
    output.write(b'the end')
    assert os.read(reading, 2**17).endswith(b'the end')
  os.close(reading)


def product(argv, stdout):
  process = start('-m', 'rome_jax', *argv, stdout=stdout)
  _, err = process.communicate(timeout=60)
  return process.returncode, err


PRODUCTS = (['describe', '--list'], ['--help'], ['--version'],
            ['run', '--help'], ['rank', '--help'])


@pytest.mark.parametrize('argv', PRODUCTS, ids=' '.join)
def test_a_product_that_nobody_reads_ends_as_of_sigpipe(argv):
  reading, writing = os.pipe()
  os.close(reading)
  assert product(argv, writing) == (128 + signal.SIGPIPE, '')
  os.close(writing)


@pytest.mark.skipif(not FULL.exists(), reason='needs /dev/full')
@pytest.mark.parametrize('argv', PRODUCTS[:2], ids=' '.join)
def test_a_product_without_space_is_one_sentence(argv):
  with open(FULL, 'w') as full:
    code, err = product(argv, full)
  assert code == 2 and err.count('\n') == 1
  assert 'cannot write to stdout: No space left on device' in err


# A library that turns a Ctrl-C while it is loaded into its own error.
LIBRARY = """
import signal, sys
try:
  signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
  raise ImportError('an error while initializing the extension') from None
print('ignored', flush=True)
sys.exit(7)
"""


@pytest.mark.parametrize('name', ['argparse', 'jax'])
@pytest.mark.parametrize('module, command', [
    ('rome_jax.main', []), ('rome_jax', ['export']), ('rome_jax', ['compare'])])
def test_ctrl_c_while_libraries_are_loaded(name, module, command, tmp_path):
  (tmp_path / f'{name}.py').write_text(LIBRARY)
  for handler, wanted in (('SIG_DFL', (-signal.SIGINT, '', '')),
                          # As a shell starts what is in the background.
                          ('SIG_IGN', (7, 'ignored\n', ''))):
    process = start(
        '-m', module, *command, env=os.environ | {'PYTHONPATH': str(tmp_path)},
        before=f'signal.signal(signal.SIGINT, signal.{handler})')
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == wanted


COMMAND = """
import signal, sys, time, types
from rome_jax import __main__ as door

def main(argv):
  try:
    print('ready', flush=True)
    time.sleep(60)
  except KeyboardInterrupt:
    if argv:
      raise ImportError('an error while initializing the extension') from None
    raise

command = types.ModuleType('export')
command.main = main
sys.modules['rome_jax.cli.export'] = command
signal.signal(signal.SIGINT, signal.default_int_handler)
code = door.main(['export', *sys.argv[1:]])
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
sys.exit(code)
"""


@pytest.mark.parametrize('argv', [[], ['later']])
def test_ctrl_c_ends_a_command_without_a_traceback(argv):
  """Whatever a library that is loaded later makes of it."""
  process = start('-c', COMMAND, *argv)
  assert process.stdout.readline() == 'ready\n'
  time.sleep(.05)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert (process.returncode, out, err) == (130, '', '')
