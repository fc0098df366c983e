"""Search spaces, genotypes, and exact counts of parameters; no JAX."""

from rome_jax.spaces.sizes import Sizes
from rome_jax.spaces.space import (
    CELL_TYPES,
    DARTS,
    MOBILE,
    MOBILE_TINY,
    NASBENCH201,
    NASBENCH_MACRO,
    S0,
    S1,
    S2,
    S3,
    S4,
    SPACES,
    Space,
    get_space,
    mobile,
)

__all__ = [
    'CELL_TYPES', 'DARTS', 'MOBILE', 'MOBILE_TINY', 'NASBENCH201',
    'NASBENCH_MACRO', 'S0', 'S1', 'S2', 'S3', 'S4', 'SPACES', 'Sizes',
    'Space', 'get_space', 'mobile',
]
