"""Tabular benchmarks: the recorded result of training every network of a space.

::

  from rome_jax.tables import nasbench201
  table = nasbench201.load()
  table.query('333311', dataset='cifar10')

See docs/tables.md. No module here imports JAX.
"""
