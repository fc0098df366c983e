"""rome_jax: memory-efficient differentiable architecture search in JAX.

  from rome_jax import Network
  from rome_jax.spaces import genotypes
  network = Network(genotypes.load('DARTS_V2'), cells=20, channels=36,
                    num_classes=10)
  variables = network.init(jax.random.key(0), images)
"""

import importlib

__version__ = '0.1.0'

# Loaded at first use, so that `python -m rome_jax describe` and the tables
# start without JAX.
_LAZY = {'Network': 'families.darts', 'Supernet': 'families.darts',
         'Genotype': 'spaces.genotypes', 'Space': 'spaces'}


def __getattr__(name):
  if name in _LAZY:
    return getattr(importlib.import_module(f'rome_jax.{_LAZY[name]}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted([*globals(), *_LAZY])
