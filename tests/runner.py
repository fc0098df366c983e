"""A real process of `rome_jax.main` with a space that compiles quickly.

Run as `python tests/runner.py --config=... --workdir=...`.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rome_jax import spaces  # noqa: E402
from rome_jax.cli import run as run_lib

TINY = spaces.Space(
    'tiny', ('skip_connect', 'sep_conv_3x3', 'max_pool_3x3'), num_nodes=2)
spaces.SPACES['tiny'] = TINY

if __name__ == '__main__':
  sys.exit(run_lib.main())
