"""Agreement of a scoring with a table, against slow transcriptions."""

import itertools
import json
import re

import numpy as np
import pytest

from rome_jax import errors
from rome_jax.spaces import nasbench201_forms as forms
from rome_jax.tables import nasbench201, scores


def tau_b(x, y):
  """Kendall's tau-b from its definition, pair by pair."""
  dx = np.sign(np.subtract.outer(x, x))[np.triu_indices(len(x), 1)]
  dy = np.sign(np.subtract.outer(y, y))[np.triu_indices(len(y), 1)]
  return np.sum(dx * dy) / np.sqrt(np.sum(dx != 0) * np.sum(dy != 0))


def midranks(x):
  return np.array([np.sum(x < v) + (np.sum(x == v) + 1) / 2 for v in x])


def draws(seed, number=40, levels=None):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=number)
  y = x + rng.normal(size=number)
  return (x, y) if levels is None else (np.round(x * levels),
                                        np.round(y * levels))


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('levels', [None, 2, 1])
def test_rank_correlations_are_their_definitions(seed, levels):
  x, y = draws(seed, levels=levels)
  assert scores.kendall_tau(x, y) == pytest.approx(tau_b(x, y), abs=1e-12)
  assert scores.spearman(x, y) == pytest.approx(
      np.corrcoef(midranks(x), midranks(y))[0, 1], abs=1e-12)


def test_rank_correlations_see_only_the_order():
  x, y = draws(0)
  for law in (scores.kendall_tau, scores.spearman):
    assert law(np.exp(3 * x), y ** 3) == pytest.approx(law(x, y))
    assert law(-x, y) == pytest.approx(-law(x, y))
    assert law(x, x) == pytest.approx(1)
    assert law(x, y) == pytest.approx(law(y, x))


def test_a_constant_scoring_has_no_correlation():
  assert np.isnan(scores.kendall_tau([1, 1, 1], [1, 2, 3]))
  assert np.isnan(scores.spearman([1, 2, 3], [1, 1, 1]))


@pytest.mark.parametrize('seed', range(5))
def test_top_k_is_the_overlap_of_two_sets(seed):
  x, y = draws(seed)
  for k in (1, 5, 39, 40):
    best = set(sorted(range(40), key=lambda i: -y[i])[:k])
    chosen = sorted(range(40), key=lambda i: -x[i])[:k]
    assert scores.top_k_overlap(x, y, k) == len(best & set(chosen)) / k
    assert scores.regret(x, y, k) == pytest.approx(
        max(y) - max(y[i] for i in chosen))
  assert scores.top_k_overlap(x, y, 40) == 1
  assert scores.regret(x, y, 40) == 0
  precision = [scores.precision_at_k(x, y, 5, top) for top in (5, 10, 20, 40)]
  assert precision == sorted(precision) and precision[-1] == 1
  regrets = [scores.regret(x, y, k) for k in range(1, 41)]
  assert regrets == sorted(regrets, reverse=True)


def test_ties_of_the_table_count_as_good():
  values = [5, 4, 4, 1]
  assert scores.top_k_overlap([1, 0, 3, 2], values, 1) == 0
  assert scores.top_k_overlap([3, 0, 4, 1], values, 2) == 1
  # Ties of the scores are broken by the order of the networks.
  assert scores.regret([1, 1, 1, 1], values) == 0
  assert scores.regret([1, 1, 1, 1], values[::-1]) == 4


@pytest.mark.parametrize('arguments, words', [
    (([1, 2], [1, 2, 3]), 'scores has 2 numbers and values 3'),
    (([1], [1]), 'at least 2'), (([[1, 2]], [1, 2]), 'scores has shape'),
    (([1, np.nan], [1, 2]), 'scores has 1 NaN'),
    (([1, 2], [np.nan, 2]), 'values has 1 NaN'),
])
def test_wrong_scores_are_named(arguments, words):
  for law in (scores.kendall_tau, scores.spearman, scores.regret):
    with pytest.raises(errors.UserError, match=re.escape(words)):
      law(*arguments)


@pytest.mark.parametrize('k', [0, 4, -1, 1.5, None])
def test_a_wrong_k_is_named(k):
  for law in (scores.top_k_overlap, scores.regret):
    with pytest.raises(errors.UserError, match=f'k={k!r} must be an integer'):
      law([1, 2, 3], [1, 2, 3], k)


# --- Against NAS-Bench-201


def test_the_table_scores_itself_perfectly():
  known = nasbench201.load()
  result = scores.evaluate(known, known.values('cifar100'),
                           dataset='cifar100')
  assert json.loads(json.dumps(result, allow_nan=False))['rank'] == 1
  assert result['kendall_tau'] == pytest.approx(1)
  assert result['spearman'] == pytest.approx(1)
  assert result['top_k_overlap'] == {1: 1, 10: 1, 100: 1}
  assert result['regret'] == 0 and result['num_cells'] == 15625
  assert result['chosen'] == forms.to_string(9930)


def test_a_good_scoring_beats_a_poor_one():
  """Of accuracy after 12 epochs, size and chance: in this order."""
  known = nasbench201.load()
  some = np.random.default_rng(0).choice(15625, 500, replace=False)
  scorings = [known.values('cifar10', 'valid', 12),
              known.cost_values('params'),
              np.random.default_rng(1).normal(size=15625)]
  taus = [scores.evaluate(known, s[some], cells=some)['kendall_tau']
          for s in scorings]
  assert taus == sorted(taus, reverse=True)
  assert taus[0] > .5 and abs(taus[-1]) < .1
  assert taus[0] == pytest.approx(
      tau_b(scorings[0][some], known.values()[some]), abs=1e-12)


def test_cells_come_in_any_form_or_as_a_mapping():
  known = nasbench201.load()
  cells = [forms.to_code(5), forms.to_string(6), 7, forms.to_genotype(8)]
  values = [.1, .4, .3, .2]
  result = scores.evaluate(known, values, cells=cells, top=(1, 2, 10))
  assert result == scores.evaluate(
      known, dict(zip(cells, values)), top=(1, 2))
  assert result['chosen'] == forms.to_string(6)
  assert result['rank'] == known.rank(6)
  assert set(result['regret_at_k']) == {1, 2}
  order = [known.query(cell) for cell in cells]
  assert result['kendall_tau'] == pytest.approx(tau_b(values, order))


@pytest.mark.parametrize('forms_of_one', [
    lambda i: [i, forms.to_code(i)], lambda i: [forms.to_string(i), i],
    lambda i: [forms.to_genotype(i), forms.from_index(i)], lambda i: [i] * 4])
def test_a_cell_in_two_forms_is_scored_once(forms_of_one):
  known = nasbench201.load()
  others, one = [11, 12, 13, 14], forms_of_one(10)
  cells = [others[0], *one, *others[1:]]
  values = [.5, *[.9] * len(one), .1, .2, .8]
  once = scores.evaluate(
      known, [.5, .9, .1, .2, .8], cells=[11, 10, 12, 13, 14], top=(1, 2))
  assert scores.evaluate(known, values, cells=cells, top=(1, 2)) == once
  assert once['num_cells'] == 5
  with pytest.raises(errors.UserError, match=(
      'twice, with the scores 0.9 and 0.7; a cell has one score')):
    scores.evaluate(known, [.5, .9, *[.7] * (len(one) - 1), .1, .2, .8],
                    cells=cells)


def test_a_mapping_with_one_cell_in_two_forms():
  known = nasbench201.load()
  cells = {'421211': .5, forms.to_string(0): .4, 7: .3}
  with pytest.raises(errors.UserError, match='twice, with the scores 0.5 and'):
    scores.evaluate(known, cells)
  cells[forms.to_string(0)] = .5
  assert scores.evaluate(known, cells)['num_cells'] == 2


def test_evaluate_says_what_is_wrong():
  known = nasbench201.load()
  with pytest.raises(errors.UserError, match='must be as many'):
    scores.evaluate(known, np.zeros(15624))
  with pytest.raises(errors.UserError, match='cells must be None'):
    scores.evaluate(known, {'333311': 1.}, cells=['333311'])
  with pytest.raises(errors.UserError, match='6 digits'):
    scores.evaluate(known, {'3': 1., '333311': 2.})
  with pytest.raises(errors.UserError, match='dataset='):
    scores.evaluate(known, np.zeros(15625), dataset='svhn')
  constant = scores.evaluate(known, np.zeros(15625))
  assert constant['kendall_tau'] is None and constant['spearman'] is None


def test_validation_predicts_test_better_than_another_data_set():
  known = nasbench201.load()
  within = {d: scores.spearman(known.values(d, 'valid'), known.values(d))
            for d in nasbench201.DATASETS}
  between = [scores.spearman(known.values(a), known.values(b))
             for a, b in itertools.combinations(nasbench201.DATASETS, 2)]
  assert min(within.values()) > .98
  assert .9 < min(between) and max(between) < min(within.values())
