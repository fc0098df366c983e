"""The command in front of the commands."""

import pathlib
import subprocess
import sys

import pytest

from rome_jax import __main__ as door
from rome_jax.cli import describe, flags, rank, run, sweep
from rome_jax.config import fields
from rome_jax.data import rand_augment
from rome_jax.train import ranking

ROOT = pathlib.Path(__file__).parents[2]


def test_help_names_every_command_and_nothing_is_left_out(capsys):
  assert door.main(['--help']) == door.main(['-h']) == 0
  out, err = capsys.readouterr()
  commands = {path.stem for path in (ROOT / 'rome_jax' / 'cli').glob('*.py')
              if '\ndef main(' in path.read_text()}
  assert 'run' in commands
  for name in commands:
    assert out.count(f'\n  {name} ') == 2
  assert not err and all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize('argv, message', [
    ([], 'a command is missing; use one of run, sweep, compare, describe, '
     'rank, predict, export, variance'),
    (['descibe', 'DARTS_V2'], "unknown command 'descibe'; use one of run, "
     'sweep, compare, describe, rank, predict, export, variance; did you mean '
     "'describe'?"),
    (['--config=quickstart'], "unknown command '--config=quickstart'"),
])
def test_no_such_command_is_one_sentence(argv, message, capsys):
  assert door.main(argv) == 2
  out, err = capsys.readouterr()
  assert not out and err.count('\n') == 1
  assert err.startswith(f'rome_jax: {message}')


@pytest.mark.parametrize('name, module', [
    ('run', run), ('sweep', sweep), ('describe', describe), ('rank', rank)])
def test_a_command_gets_its_flags_and_gives_its_code(name, module, monkeypatch):
  monkeypatch.setattr(module, 'main', lambda argv: (argv, 3))
  assert door.main([name, '--seeds=0', 'x']) == (['--seeds=0', 'x'], 3)


def test_a_file_that_may_not_be_read_is_one_sentence(monkeypatch, capsys):
  def refuse(argv):
    open('/private/config.json')

  def forbidden(path, *args):
    raise PermissionError(13, 'Permission denied', path)

  monkeypatch.setattr(rank, 'main', refuse)
  monkeypatch.setattr('builtins.open', forbidden)
  code = door.main(['rank', 'RUN'])
  monkeypatch.undo()
  assert code == 2
  assert capsys.readouterr().err == (
      'rome_jax: cannot use /private/config.json: Permission denied\n')


def test_the_flags_are_the_processs_where_none_are_given(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['rome-jax', 'describe', '--list'])
  monkeypatch.setattr(describe, 'main', lambda argv: argv)
  assert door.main() == ['--list']


@pytest.mark.parametrize('name', ['run', *flags.PARSERS])
def test_help_loads_little(name):
  slow = ('matplotlib', 'orbax', 'scipy', 'flax') + ('jax',) * (name != 'run')
  code = ('import sys; from rome_jax import __main__ as door; '
          f"assert door.main([{name!r}, '--help']) == 0; "
          f'print([m for m in {slow!r} if m in sys.modules])')
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT,
                        capture_output=True, text=True)
  *text, loaded = done.stdout.splitlines()
  assert text[0].startswith(f'usage: rome-jax {name} ') and loaded == '[]'


def test_as_a_process():
  done = subprocess.run(
      [sys.executable, '-m', 'rome_jax', 'describe', 'DARTS_V3'], cwd=ROOT,
      capture_output=True, text=True)
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.count('\n') == 1 and 'DARTS_V2' in done.stderr


def test_help_says_what_the_code_has():
  """`flags` loads none of it, so the figures stand there again."""
  text = flags.rank().format_help()
  assert '|'.join(ranking.NORMS) in text
  assert flags.rank().parse_args(['run']).block == ranking.BLOCK
  assert fields.FIELDS['retrain.rand_magnitude'].high == (
      rand_augment.MAGNITUDES - 1)
