"""Search methods: a row each, and the one step that reads it.

>>> from rome_jax import methods
>>> methods.gdas.recipe['search.k']
1
>>> methods.METHODS['gdas'] is methods.gdas
True
"""

from rome_jax.methods.method import (
    ArchParams,
    Extra,
    Method,
    Noise,
    OneSearch,
    RandomSearch,
    Stages,
    State,
    TrainRandom,
    Update,
)
from rome_jax.methods.step import OneVector, Options
from rome_jax.methods.table import (
    METHODS,
    darts,
    darts_2nd,
    fair_darts,
    gdas,
    p_darts,
    pc_darts,
    random_search,
    register,
    rome_v1,
    rome_v2,
    sdarts_adv,
    sdarts_rs,
    snas,
    spos,
)

__all__ = [
    'METHODS', 'ArchParams', 'Extra', 'Method', 'Noise', 'OneSearch',
    'OneVector', 'Options', 'RandomSearch', 'Stages', 'State', 'TrainRandom',
    'Update', 'darts',
    'darts_2nd', 'fair_darts', 'gdas', 'p_darts', 'pc_darts', 'random_search',
    'register', 'rome_v1', 'rome_v2', 'sdarts_adv', 'sdarts_rs', 'snas', 'spos',
]
