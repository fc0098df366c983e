"""rome_jax: neural architecture search in JAX with the memory of one path.

>>> import rome_jax as rj
>>> space, method = rj.spaces.S0, rj.methods.rome_v2
>>> genotype = rj.genotypes.load('DARTS_V2')
>>> network = rj.Network(genotype, cells=20, channels=36, num_classes=10)

docs/library.md has a search in your own loop; `rome-jax run --config=FILE` is
a whole run.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # What `__getattr__` gives, for type checkers.
  from rome_jax import config as config
  from rome_jax import data as data
  from rome_jax import families as families
  from rome_jax import methods as methods
  from rome_jax import spaces as spaces
  from rome_jax import tables as tables
  from rome_jax.api import export as export
  from rome_jax.api import init as init
  from rome_jax.api import linear as linear
  from rome_jax.api import load as load
  from rome_jax.api import make_step as make_step
  from rome_jax.api import run as run
  from rome_jax.cli.predict import predict as predict
  from rome_jax.devices.mesh import make_mesh as make_mesh
  from rome_jax.errors import UserError as UserError
  from rome_jax.families import arch_of as arch_of
  from rome_jax.families import build as build
  from rome_jax.families import features as features
  from rome_jax.families import supernet as supernet
  from rome_jax.families.darts import Network as Network
  from rome_jax.families.darts import Supernet as Supernet
  from rome_jax.methods import Method as Method
  from rome_jax.spaces import Sizes as Sizes
  from rome_jax.spaces import Space as Space
  from rome_jax.spaces import genotypes as genotypes
  from rome_jax.spaces.genotypes import Genotype as Genotype
  from rome_jax.train.ranking import rank as rank

__version__ = '0.1.0'

# Loaded at first use, so that `rome-jax describe` and the tables start without
# JAX. Name -> (module, name in it); '' is the module itself.
_LAZY = {
    # values and their types
    'spaces': ('spaces', ''), 'Space': ('spaces', 'Space'),
    'Sizes': ('spaces', 'Sizes'),
    'genotypes': ('spaces.genotypes', ''),
    'Genotype': ('spaces.genotypes', 'Genotype'),
    'methods': ('methods', ''), 'Method': ('methods', 'Method'),
    # networks
    'families': ('families', ''),
    'supernet': ('families', 'supernet'), 'build': ('families', 'build'),
    'arch_of': ('families', 'arch_of'), 'features': ('families', 'features'),
    'Network': ('families.darts', 'Network'),
    'Supernet': ('families.darts', 'Supernet'),
    # a search in your own loop
    'make_step': ('api', 'make_step'), 'init': ('api', 'init'),
    'linear': ('api', 'linear'), 'make_mesh': ('devices.mesh', 'make_mesh'),
    'rank': ('train.ranking', 'rank'),
    # runs
    'config': ('config', ''), 'data': ('data', ''), 'tables': ('tables', ''),
    'run': ('api', 'run'), 'load': ('api', 'load'),
    'export': ('api', 'export'), 'predict': ('cli.predict', 'predict'),
    'UserError': ('errors', 'UserError'),
}

__all__ = ['__version__', *_LAZY]


def __getattr__(name: str) -> Any:
  if name not in _LAZY:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, member = _LAZY[name]
  found = importlib.import_module(f'rome_jax.{module}')
  return getattr(found, member) if member else found


def __dir__() -> list[str]:
  return sorted(__all__)
