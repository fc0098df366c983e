"""The errors that end a run early, and their exit codes."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """A mistake of the caller's, explained in one sentence; exit code 2.

  The message names the field or file, its value and what is allowed.
  Subclasses ValueError, so programs can catch it without importing this.
  """

  exit_code = 2


class DivergedError(Exception):
  """A loss is no longer finite; exit code 3."""

  exit_code = 3


class LostError(Exception):
  """Another process of the run died or computed other values; exit code 4."""

  exit_code = 4


def near_miss(value: object, known: Iterable[str]) -> str:
  """Returns '; did you mean X?' for the closest known name, or ''.

  >>> near_miss('cifra10', ['cifar10', 'digits'])
  "; did you mean 'cifar10'?"
  >>> near_miss('zzz', ['cifar10'])
  ''
  """
  found = difflib.get_close_matches(str(value), list(known), 1)
  return f'; did you mean {found[0]!r}?' if found else ''
