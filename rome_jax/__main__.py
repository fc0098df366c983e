"""`python -m rome_jax COMMAND ...`, also installed as `rome-jax`."""

import importlib
import signal
import sys
from collections.abc import Sequence

import rome_jax
from rome_jax.devices import interrupt

if __name__ == '__main__':
  interrupt.end_at_once()

from rome_jax import cli, errors  # noqa: E402
from rome_jax.cli import flags  # noqa: E402

# A module of `rome_jax.cli` for each; it is imported when it is asked for.
COMMANDS = {
    'run': 'search, derive, retrain and report, as a config says',
    'sweep': 'repeat a run over seeds and values of fields',
    'compare': 'methods side by side, on one page',
    'describe': 'count and draw a genotype',
    'rank': "how well a run's supernet ranks architectures",
    'predict': "classify images with a run's network",
    'export': "a run's network as StableHLO, ONNX or safetensors",
    'variance': "what PA&DA's laws do to the gradient's variance",
}
HELP = '\n'.join([
    'usage: rome-jax COMMAND ...   (also: python -m rome_jax COMMAND ...)',
    '',
    *(f'  {name:9} {meaning}' for name, meaning in COMMANDS.items()),
    '',
    'COMMAND --help lists the flags of a command.',
    '--version tells the version.'])


def _answer(name, rest):
  """What is printed where no command is to run; else None."""
  if name in ('-h', '--help'):
    return HELP
  if name == '--version':
    return f'rome_jax {rome_jax.__version__}'
  return _help(name) if cli.asks_for_help(rest) else None


def _help(name):
  """What `rome-jax NAME --help` prints, without loading what NAME needs.

  None: the command knows.
  """
  if name == 'run':
    return importlib.import_module('rome_jax.config.help_text').text()
  return flags.PARSERS[name]().format_help() if name in flags.PARSERS else None


def _command(name):
  if name in COMMANDS:
    return importlib.import_module(f'rome_jax.cli.{name}').main
  found = f'unknown command {name!r}' if name else 'a command is missing'
  raise errors.UserError(
      f'{found}; use one of {", ".join(COMMANDS)}'
      f'{errors.near_miss(name, COMMANDS)}')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: a command's name and its flags; None: those of the process.

  Returns:
    Its exit code; 2 for a missing or unknown command.
  """
  cli.make_output_safe()
  name, *rest = (sys.argv[1:] if argv is None else argv) or ['']
  with interrupt.CtrlC() as ctrl_c:
    try:
      if text := _answer(name, rest):
        print(text)
        return cli.printed()
      command = _command(name)
      ctrl_c.raises()
      return command(rest)
    except errors.UserError as error:
      print(f'rome_jax: {error}', file=sys.stderr)
      return error.exit_code
    except PermissionError as error:  # Of any file that a command looks at.
      print(f'rome_jax: cannot use {error.filename}: {error.strerror}',
            file=sys.stderr)
      return errors.UserError.exit_code
  return 128 + signal.SIGINT


if __name__ == '__main__':
  sys.exit(main())
