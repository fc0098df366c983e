"""Search methods: a row each, and the one step that reads it.

>>> from rome_jax import methods
>>> methods.gdas.recipe['search.k']
1
>>> methods.METHODS['gdas'] is methods.gdas
True
"""

from rome_jax.methods.method import (
    ArchParams,
    Evolve,
    Extra,
    Method,
    Noise,
    OneSearch,
    Seen,
    Stages,
    State,
    TrainRandom,
    Update,
)
from rome_jax.methods.step import OneVector, Options
from rome_jax.methods.table import (
    METHODS,
    da,
    darts,
    darts_2nd,
    darts_2nd_ada,
    darts_2nd_es,
    darts_ada,
    darts_es,
    fair_darts,
    fairnas,
    gdas,
    p_darts,
    pa,
    pada,
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
    'METHODS', 'ArchParams', 'Evolve', 'Extra', 'Method', 'Noise', 'OneSearch',
    'OneVector', 'Options', 'Seen', 'Stages', 'State', 'TrainRandom', 'Update',
    'da', 'darts', 'darts_2nd', 'darts_2nd_ada', 'darts_2nd_es', 'darts_ada',
    'darts_es', 'fair_darts', 'fairnas', 'gdas', 'p_darts', 'pa', 'pada',
    'pc_darts', 'random_search', 'register', 'rome_v1', 'rome_v2', 'sdarts_adv',
    'sdarts_rs', 'snas', 'spos',
]
