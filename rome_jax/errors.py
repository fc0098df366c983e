"""The errors that end a run early, and their exit codes."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """A mistake of the caller's, explained in one sentence; exit code 2.

  The message names the field or file, its value and what is allowed.
  Subclasses ValueError, so programs can catch it without importing this.
  The message is one line, whatever names and values it quotes: line breaks and
  other letters that do not print are escaped, and a very long one is cut.

  >>> UserError('config.search.cells=0 must be at least 1').exit_code
  2
  >>> print(UserError('a\\nb does not exist'))
  a\\nb does not exist
  """

  exit_code = 2

  def __init__(self, message: object = ''):
    super().__init__(_one_line(str(message)))


_LONGEST = 1000  # letters of a message; more helps nobody


def _one_line(text: str) -> str:
  text = printable(text)  # First, as what is escaped is longer.
  if len(text) > _LONGEST:
    cut = ' [...] '
    half = (_LONGEST - len(cut)) // 2
    text = f'{text[:half]}{cut}{text[-half:]}'
  return text


def printable(text: str) -> str:
  """Escapes what does not print, such as a terminal's codes in a file's name.

  >>> print(printable('a\\tb'))
  a\\tb
  """
  return ''.join(
      letter if letter.isprintable() else repr(letter)[1:-1]
      for letter in text)


class DivergedError(Exception):
  """A loss is no longer finite; exit code 3."""

  exit_code = 3


class LostError(Exception):
  """Another process of the run died or computed other values; exit code 4."""

  exit_code = 4


def near_miss(value: object, known: Iterable[str]) -> str:
  """Returns '; did you mean X?' for the closest known names, or ''.

  Case and punctuation do not count. A name that is the same without them
  comes first, then those that begin with the value, then the most similar.

  >>> near_miss('cifra10', ['cifar10', 'digits'])
  "; did you mean 'cifar10'?"
  >>> near_miss('PC-DARTS', ['PDARTS', 'PC_DARTS_cifar', 'PC_DARTS_image'])
  "; did you mean 'PC_DARTS_cifar' or 'PC_DARTS_image'?"
  >>> near_miss('zzz', ['cifar10'])
  ''
  """
  names, key = list(known), plain(str(value))
  if not key:
    return ''
  found = ([name for name in names if plain(name) == key]
           or _beginning(key, names) or _similar(key, names))
  return f'; did you mean {" or ".join(map(repr, found))}?' if found else ''


_PREFIX = 3  # letters that make a beginning
_SUGGESTIONS = 3  # a longer list helps nobody


def plain(name: str) -> str:
  """A name without case and punctuation.

  >>> plain('P-DARTS')
  'pdarts'
  """
  return ''.join(filter(str.isalnum, name.lower()))


def _beginning(key, names):
  found = [name for name in names if plain(name).startswith(key)]
  return found if len(key) >= _PREFIX and len(found) <= _SUGGESTIONS else []


def _similar(key, names):
  by_key = {plain(name): name for name in reversed(names)}
  return [by_key[near] for near in difflib.get_close_matches(key, by_key, 1)]
