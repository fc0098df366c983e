"""The configuration of a run: its fields, their checks, the command line."""

from rome_jax.config.checks import (
    apply_recipe,
    check_workdir,
    from_json,
    space,
    validate,
)
from rome_jax.config.command_line import Loaded, Options, arguments, load
from rome_jax.config.comparison import Comparison
from rome_jax.config.fields import FIELDS, FILENAME, defaults, to_json

__all__ = [
    'Comparison', 'FIELDS', 'FILENAME', 'Loaded', 'Options', 'apply_recipe',
    'arguments', 'check_workdir', 'defaults', 'from_json', 'load', 'space',
    'to_json', 'validate',
]
