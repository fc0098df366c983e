"""The command line, a module per command."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from rome_jax import errors


def make_output_safe() -> None:
  """Lets any path be printed: what a terminal cannot show is escaped.

  Otherwise a folder whose name is not ASCII ends a run on an ASCII terminal.
  """
  for stream in (sys.stdout, sys.stderr):
    if reconfigure := getattr(stream, 'reconfigure', None):
      reconfigure(errors='backslashreplace')


def asks_for_help(argv: Sequence[str]) -> bool:
  """Whether a command line asks how to write one.

  >>> asks_for_help(['--config=quickstart', '--help'])
  True
  """
  return any(word in ('-h', '--help', '-help') for word in argv)


class Parser(argparse.ArgumentParser):
  """Raises a UserError where argparse would print its usage and exit."""

  def error(self, message: str) -> NoReturn:
    raise errors.UserError(message)


def at_least(low: int) -> Callable[[str], int]:
  """The argparse type of an integer that is not below `low`.

  >>> at_least(1)('3')
  3
  """

  def read(text: str) -> int:
    try:
      value = int(text)
    except ValueError:
      value = low - 1
    if value < low:
      raise argparse.ArgumentTypeError(
          f'{text!r} must be an integer of at least {low}')
    return value

  return read


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
  """Parses the arguments of a command.

  Raises:
    UserError: a flag is unknown, given twice or has a wrong value.
  """
  flags = [text.split('=')[0] for text in argv if text.startswith('--')]
  twice = [name for name in flags if flags.count(name) > 1]
  if twice:
    raise errors.UserError(f'{twice[0]} is given twice')
  args, unknown = parser.parse_known_args(argv)
  if unknown:
    known = [name for action in parser._actions
             for name in action.option_strings]
    raise errors.UserError(
        f'unknown argument {unknown[0]!r}'
        f'{errors.near_miss(unknown[0].split("=")[0], known)}')
  return args
