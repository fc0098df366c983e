"""`python -m rome_jax.main --config=configs/quickstart.py`: a whole run."""

import sys
from collections.abc import Sequence

from rome_jax.devices import interrupt

if __name__ == '__main__':
  interrupt.end_at_once()

from rome_jax import __main__ as door  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line of `rome-jax run` (default: the process's)."""
  return door.main(['run', *(sys.argv[1:] if argv is None else argv)])


if __name__ == '__main__':
  sys.exit(main())
