"""Weighted orders against their law."""

import numpy as np
import pytest
from scipy import stats

from rome_jax.data import draws


@pytest.mark.parametrize('seed', range(3))
def test_draws_follow_the_weights(seed):
  """Chi-square over 50 places; p > 1e-4 in each of three seeds."""
  weights = np.random.default_rng(9).gamma(.5, size=50)
  weights[::10] = 0
  found = np.bincount(draws.order(
      draws.quantised(weights), 200_000, np.random.default_rng(seed)),
      minlength=50)
  assert not found[::10].any()
  kept = weights > 0
  expected = weights[kept] / weights.sum() * found.sum()
  assert stats.chisquare(found[kept], expected).pvalue > 1e-4


def test_an_order_is_a_function_of_its_generator():
  weights = draws.quantised(np.arange(5.))
  first, second = (draws.order(weights, 9, np.random.default_rng(3))
                   for _ in range(2))
  np.testing.assert_array_equal(first, second)


def test_quantised_keeps_proportions_and_small_weights():
  weights = np.array([1e-30, .25, .5, 1.])
  found = draws.quantised(weights)
  assert found[0] == 1 and found.dtype == np.uint32
  np.testing.assert_allclose(found[1:] / found[-1], weights[1:], rtol=1e-9)


def test_a_million_equal_weights_do_not_overflow():
  weights = draws.quantised(np.ones(1_000_000))
  found = draws.order(weights, 100_000, np.random.default_rng(0))
  assert 0 <= found.min() and found.max() < 1_000_000
  assert abs(found.mean() / 499_999.5 - 1) < 5 * .577 / 100_000**.5


@pytest.mark.parametrize('weights, words', [
    ([1., -1.], 'weight 1 is -1.0'), ([np.nan], 'weight 0 is nan'),
    ([1., np.inf], 'weight 1 is inf'), ([], 'list of numbers'),
    ([[1.]], 'list of numbers')])
def test_bad_weights(weights, words):
  with pytest.raises(ValueError, match=words):
    draws.quantised(np.array(weights))
