"""The configuration of a run: its fields, their checks, the command line."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # What `__getattr__` gives, for type checkers.
  from rome_jax.config.checks import apply_recipe as apply_recipe
  from rome_jax.config.checks import check_workdir as check_workdir
  from rome_jax.config.checks import from_json as from_json
  from rome_jax.config.checks import space as space
  from rome_jax.config.checks import validate as validate
  from rome_jax.config.command_line import Loaded as Loaded
  from rome_jax.config.command_line import Options as Options
  from rome_jax.config.command_line import arguments as arguments
  from rome_jax.config.command_line import load as load
  from rome_jax.config.comparison import Comparison as Comparison
  from rome_jax.config.fields import FIELDS as FIELDS
  from rome_jax.config.fields import FILENAME as FILENAME
  from rome_jax.config.fields import defaults as defaults
  from rome_jax.config.fields import to_json as to_json

# Loaded at first use: checks need the networks, the text of `--help` does not.
_LAZY = {
    'apply_recipe': 'checks', 'check_workdir': 'checks', 'from_json': 'checks',
    'space': 'checks', 'validate': 'checks',
    'Loaded': 'command_line', 'Options': 'command_line',
    'arguments': 'command_line', 'load': 'command_line',
    'Comparison': 'comparison',
    'FIELDS': 'fields', 'FILENAME': 'fields', 'defaults': 'fields',
    'to_json': 'fields',
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
  if name not in _LAZY:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(
      importlib.import_module(f'{__name__}.{_LAZY[name]}'), name)


def __dir__() -> list[str]:
  return sorted(__all__)
