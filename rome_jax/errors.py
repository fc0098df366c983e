"""The ways in which a run ends early, and their exit codes."""

import difflib


class UserError(ValueError):
  """A mistake of the caller's, said in one sentence; exit code 2.

  The message names the field or file, its value and what is allowed.
  """

  exit_code = 2


class DivergedError(Exception):
  """A loss that is no longer finite; exit code 3."""

  exit_code = 3


class LostError(Exception):
  """Another process of the run is gone or went astray; exit code 4."""

  exit_code = 4


def near_miss(value, known):
  """'; did you mean X?' for the likeliest known name, or ''."""
  found = difflib.get_close_matches(str(value), list(known), 1)
  return f'; did you mean {found[0]!r}?' if found else ''
