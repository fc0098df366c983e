"""Scripts of this folder that need a process of their own."""

import json
import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).parent


def printed(script, *args, timeout):
  """The JSON on the last line that a script prints.

  Args:
    script: its name.
    *args: of its command line.
    timeout: in seconds.
  """
  found = subprocess.run(
      [sys.executable, TESTS / script, *args], cwd=TESTS.parent,
      env={**os.environ, 'PYTHONPATH': str(TESTS.parent)},
      stdout=subprocess.PIPE, check=True, timeout=timeout)
  return json.loads(found.stdout.splitlines()[-1])
