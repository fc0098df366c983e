"""`python -m rome_jax.main --config=configs/quickstart.py`: a whole run."""

import sys

from rome_jax.cli.run import main

if __name__ == '__main__':
  sys.exit(main())
