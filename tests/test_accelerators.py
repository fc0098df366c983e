"""Every kind of step lowers for GPU and TPU, with the operations for them.

That it runs there, and how fast, no machine without one can show.
"""

import json
import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).parent


def lowered(*args):
  found = subprocess.run(
      [sys.executable, TESTS / 'accelerators.py', *args], cwd=TESTS.parent,
      env={**os.environ, 'PYTHONPATH': str(TESTS.parent)},
      stdout=subprocess.PIPE, check=True, timeout=600)
  return json.loads(found.stdout.splitlines()[-1])


def test_steps_lower_for_accelerators_with_stock_operations():
  for name, number in lowered('gpu', 'cuda', 'tpu').items():
    # The operations of NAS-Bench-201 and NAS-Bench-1Shot1 have none.
    assert (number > 0) == ('nasbench' not in name), name


def test_the_cpu_has_its_own_operations():
  assert set(lowered('cpu', 'cpu').values()) == {0}
