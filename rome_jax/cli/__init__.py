"""The command line, a module per command."""

import sys


def make_output_safe() -> None:
  """Lets any path be printed: what a terminal cannot show is escaped.

  Otherwise a folder whose name is not ASCII ends a run on an ASCII terminal.
  """
  for stream in (sys.stdout, sys.stderr):
    if reconfigure := getattr(stream, 'reconfigure', None):
      reconfigure(errors='backslashreplace')
