"""The command line, a module per command."""

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from rome_jax import errors


class _Output(io.FileIO):
  """Drops what cannot be written, for a terminal, pipe or log may vanish.

  Only what is printed is lost: what counts is in files. A full disk may have
  space again, so every write is tried.

  Attributes:
    error: the first reason, or None.
  """

  error: OSError | None = None

  def write(self, data: Any) -> int:
    try:
      written = super().write(data)
      if written is None:  # Of a terminal that does not block.
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
      return written
    except OSError as error:
      self.error = self.error or error
      return memoryview(data).nbytes


_outputs: dict[str, _Output] = {}


def make_output_safe() -> None:
  """Lets nothing that is printed end a process, nor the lack of a reader.

  What a terminal cannot show is escaped: otherwise a folder whose name is not
  ASCII ends a run on an ASCII terminal. What cannot be written is dropped; see
  `printed`. Streams that the caller has put in place of the process's own, as
  notebooks do, only get the first.
  """
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    stream = getattr(sys, name)
    if stream is getattr(sys, f'__{name}__') and name not in _outputs:
      _replace(name, stream, number)
    elif reconfigure := getattr(stream, 'reconfigure', None):
      reconfigure(errors='backslashreplace')


def _replace(name, stream, number):
  """Puts a stream over an `_Output` in the place of the process's."""
  if stream is None:
    raw, buffered, options = _Output(_closed(number), 'w'), True, {}
  else:
    with contextlib.suppress(OSError):
      stream.flush()
    # Python's -u leaves the buffer out.
    buffered = not isinstance(stream.buffer, io.RawIOBase)
    raw = _Output(stream.fileno(), 'w', closefd=False)
    options = {'encoding': stream.encoding, 'write_through': not buffered,
               'line_buffering': stream.line_buffering}
  own = io.TextIOWrapper(io.BufferedWriter(raw) if buffered else raw,
                         errors='backslashreplace', **options)
  _outputs[name] = raw
  setattr(sys, name, own)
  setattr(sys, f'__{name}__', own)


def _closed(number):
  """Takes the place of a stream that was closed before the process began.

  Otherwise a file would get its number, and what C libraries print.
  """
  while (found := os.open(os.devnull, os.O_RDONLY)) < number:
    pass
  return found


def printed() -> int:
  """The exit code of a command whose product is what it has printed.

  Returns:
    0; or 141, as of a process that SIGPIPE ended, if nobody read all of it.

  Raises:
    UserError: some of it could not be written for another reason.
  """
  for name, output in _outputs.items():
    with contextlib.suppress(ValueError):  # It was closed since.
      getattr(sys, name).flush()
    if isinstance(output.error, BrokenPipeError):
      return 128 + 13  # SIGPIPE, which Windows lacks.
    if output.error is not None:
      raise errors.UserError(
          f'cannot write to {name}: {output.error.strerror}')
  return 0


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
