"""Rows of a bank that a function reads one example at a time."""

import itertools

import jax
import numpy as np
import pytest

from rome_jax.engine import switch

BANKS = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
INDICES = np.array([[4, 0, 2], [1, 1, 3]], np.int32)
FACTORS = np.array([[1., 2., 3.], [4., 5., 6.]], np.float32)

read = switch.one_by_one(lambda row, y: row.read() * y)


@pytest.mark.parametrize(
    'bank, index, factor', list(itertools.product([False, True], repeat=3)))
def test_vmap_reads_each_examples_row(bank, index, factor):
  """Whatever of a row and the other argument is batched."""
  if not (bank or index or factor):
    axes, expected = None, BANKS[0, 0, 4] * FACTORS[0, 0]
  else:
    axes = (switch.Row(*(0 if b else None for b in (bank, index))),
            0 if factor else None)
    expected = np.stack([
        BANKS[0, k * bank][INDICES[0, k * index]] * FACTORS[0, k * factor]
        for k in range(3)])
  row = switch.Row(BANKS[0] if bank else BANKS[0, 0],
                   INDICES[0] if index else INDICES[0, 0])
  y = FACTORS[0] if factor else FACTORS[0, 0]
  found = jax.jit(jax.vmap(read, axes) if axes else read)(row, y)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('inner', [True, False])
def test_vmap_of_vmap_reads_each_examples_row(inner):
  """Banks of both axes, or of the outer one only."""
  banks = BANKS if inner else BANKS[:, 0]
  found = jax.jit(jax.vmap(jax.vmap(
      read, (switch.Row(0 if inner else None, 0), 0))))(
          switch.Row(banks, INDICES), FACTORS)
  for i, k in np.ndindex(2, 3):
    np.testing.assert_array_equal(
        found[i, k],
        BANKS[i, k if inner else 0][INDICES[i, k]] * FACTORS[i, k])
