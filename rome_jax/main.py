"""`python -m rome_jax.main --config=configs/quickstart.py`: a whole run."""

import sys

if __name__ == '__main__':
  try:
    from rome_jax.cli.run import main
  except KeyboardInterrupt:  # Importing JAX takes seconds.
    sys.exit(130)
  sys.exit(main())
