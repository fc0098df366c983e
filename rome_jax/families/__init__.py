"""The networks around the cells, a family per skeleton."""

from rome_jax.families.table import (
    FAMILIES,
    Family,
    check,
    check_genotype,
    check_operations,
    get,
)

__all__ = ['FAMILIES', 'Family', 'check', 'check_genotype',
           'check_operations', 'get']
