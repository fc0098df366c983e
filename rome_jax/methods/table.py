"""The table of methods, a row each, and how to add one."""

from rome_jax.methods.method import Method
from rome_jax.methods.rows.darts import darts, darts_2nd, pc_darts
from rome_jax.methods.rows.fair_darts import fair_darts
from rome_jax.methods.rows.gdas import gdas
from rome_jax.methods.rows.pada import da, pa, pada
from rome_jax.methods.rows.progressive import p_darts
from rome_jax.methods.rows.random_search import random_search
from rome_jax.methods.rows.robust import (
    darts_2nd_ada,
    darts_2nd_es,
    darts_ada,
    darts_es,
)
from rome_jax.methods.rows.rome import rome_v1, rome_v2
from rome_jax.methods.rows.sdarts import sdarts_adv, sdarts_rs
from rome_jax.methods.rows.single_path import fairnas, spos
from rome_jax.methods.rows.snas import snas

METHODS: dict[str, Method] = {
    row.name: row for row in (
        rome_v1, rome_v2, gdas, darts, darts_2nd, pc_darts, snas, fair_darts,
        sdarts_rs, sdarts_adv, darts_es, darts_ada, darts_2nd_es,
        darts_2nd_ada, p_darts, spos, fairnas, pada, pa, da, random_search)}


def register(method: Method) -> Method:
  """Adds a row of your own, under its name; returns it.

  Raises:
    ValueError: there is a method of that name.
  """
  if method.name in METHODS:
    raise ValueError(f'method {method.name!r} is in the table already')
  METHODS[method.name] = method
  return method
