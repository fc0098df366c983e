"""The networks around the cells, a family per skeleton."""

from rome_jax.families.table import (
    SKELETONS,
    Skeleton,
    check,
    check_genotype,
    check_operations,
    get,
)

__all__ = ['SKELETONS', 'Skeleton', 'check', 'check_genotype',
           'check_operations', 'get']
