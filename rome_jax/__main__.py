"""`python -m rome_jax COMMAND ...`, also installed as `rome-jax`."""

import importlib
import sys

COMMANDS = {
    'run': 'search, derive, retrain and report, as a config says',
    'sweep': 'many runs, over seeds and fields',
    'describe': 'what a genotype costs, counted and drawn',
}
HELP = 'usage: rome-jax COMMAND [--help | ...]\n\n' + '\n'.join(
    f'  {name:9} {meaning}' for name, meaning in COMMANDS.items())


def main(argv=None) -> int:
  """Runs one command; returns its exit code, 2 for an unknown one."""
  name, *rest = (sys.argv[1:] if argv is None else argv) or ['']
  if name in ('-h', '--help'):
    print(HELP)
    return 0
  if name not in COMMANDS:
    what = f'{name!r} is no command' if name else 'a command is missing'
    print(f'rome_jax: {what}; use one of {", ".join(COMMANDS)}',
          file=sys.stderr)
    return 2
  return importlib.import_module(f'rome_jax.cli.{name}').main(rest)


if __name__ == '__main__':
  sys.exit(main())
