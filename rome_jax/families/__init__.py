"""The networks around the cells, a family per skeleton."""

from rome_jax.families.architectures import arch_of
from rome_jax.families.networks import build, features, supernet
from rome_jax.families.table import (
    FAMILIES,
    Family,
    check,
    check_genotype,
    check_operations,
    get,
    resolve_stem,
)
from rome_jax.spaces import Sizes

__all__ = ['FAMILIES', 'Family', 'Sizes', 'arch_of', 'build', 'check',
           'check_genotype', 'check_operations', 'features', 'get',
           'resolve_stem', 'supernet']
