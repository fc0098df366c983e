"""Tabular benchmarks: what training a network gave, without training it.

  from rome_jax.tables import nasbench201
  table = nasbench201.load()
  table.query('333311', dataset='cifar10')

See docs/tables.md. Nothing here needs JAX.
"""
