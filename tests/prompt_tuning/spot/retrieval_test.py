"""Retrieval against the paper's own figures and against enumeration."""

import itertools
import math

import numpy as np
from prompt_tuning.spot import retrieval
import pytest
import scipy.stats

# Scores without transfer and from MNLI's prompt, and the share of errors that
# is gone, as the paper prints them (SPoT, figure 5 and section 3.3).
PRINTED = {'cb': (92.7, 97.0, 58.9), 'copa': (56.7, 69.3, 29.1),
           'rte': (68.7, 74.7, 19.2), 'boolq': (73.0, 77.6, 17.0)}


@pytest.mark.parametrize('name', PRINTED)
def test_relative_error_reduction_is_the_papers(name):
  baseline, score, printed = PRINTED[name]
  assert retrieval.relative_error_reduction(score, baseline) == pytest.approx(
      printed, abs=0.05)


def random_targets(seed=0, targets=5, sources=7):
  rng = np.random.default_rng(seed)
  names = [f's{i}' for i in range(sources)]
  return [retrieval.Target(
      f't{i}', float(rng.uniform(50, 60)),
      dict(zip(names, rng.uniform(40, 90, sources).tolist(), strict=True)),
      dict(zip(names, rng.uniform(-1, 1, sources).tolist(), strict=True)))
          for i in range(targets)]


def test_best_of_top_k_equals_trying_them():
  targets = random_targets()
  rows = retrieval.best_of_top_k(targets)
  assert [row.k for row in rows] == [1, 2, 3, 4, 5, 6, 7]
  oracle = np.mean([max(t.scores.values()) - t.baseline for t in targets])
  for row in rows:
    gains, reductions = [], []
    for target in targets:
      # The k sources that no source outside is more similar than.
      chosen, = [c for c in itertools.combinations(target.scores, row.k)
                 if min(target.similarity[n] for n in c) > max(
                     [target.similarity[n] for n in target.scores
                      if n not in c], default=-2)]
      best = max(target.scores[n] for n in chosen)
      gains.append(best - target.baseline)
      reductions.append(100 * (best - target.baseline)
                        / (100 - target.baseline))
    assert row.absolute_gain == pytest.approx(np.mean(gains))
    assert row.relative_error_reduction == pytest.approx(np.mean(reductions))
    assert row.score == pytest.approx(
        np.mean(gains) + np.mean([t.baseline for t in targets]))
    assert row.oracle_share == pytest.approx(100 * np.mean(gains) / oracle)
    assert row.search_saved == pytest.approx(100 * (1 - row.k / 7))
  assert rows[-1].oracle_share == 100


def test_the_papers_share_of_the_search():
  # 15 of 48 source prompts leave 69 % untried.
  targets = random_targets(sources=48)
  row, = retrieval.best_of_top_k(targets, [15])
  assert row.search_saved == pytest.approx(69, abs=0.5)


def test_equal_similarities_are_ranked_by_name():
  assert retrieval.rank({'b': 1.0, 'c': 2.0, 'a': 1.0}) == ['c', 'a', 'b']
  with pytest.raises(ValueError, match="'x' is not a number"):
    retrieval.rank({'x': math.nan, 'y': 1.0})


def test_no_gain_has_no_share():
  target = retrieval.Target('t', 50.0, {'s': 50.0}, {'s': 1.0})
  row, = retrieval.best_of_top_k([target])
  assert math.isnan(row.oracle_share) and row.absolute_gain == 0
  worse = retrieval.Target('t', 50.0, {'s': 40.0, 'u': 45.0},
                           {'s': 1.0, 'u': 0.0})
  rows = retrieval.best_of_top_k([worse])
  assert [row.absolute_gain for row in rows] == [-10, -5]
  assert all(math.isnan(row.oracle_share) for row in rows)


@pytest.mark.parametrize('call, message', [
    (lambda t: retrieval.best_of_top_k([]), 'expected targets'),
    (lambda t: retrieval.best_of_top_k(
        [t, retrieval.Target('u', 1.0, {'s': 1.0}, {'s': 1.0})]),
     r'\[1, 7\] source prompts'),
    (lambda t: retrieval.best_of_top_k([t], [8]), 'k is 8; there are 7'),
    (lambda t: retrieval.best_of_top_k([t], [0]), 'k is 0'),
    (lambda t: retrieval.Target('u', 1.0, {'s': 1.0}, {}), r"'u'.*\['s'\]"),
    (lambda t: retrieval.Target('u', 1.0, {}, {}), "'u' has 0 scores"),
    (lambda t: retrieval.relative_error_reduction(99.0, 100.0), 'no errors'),
    (lambda t: retrieval.correlation(t, 'kendall'), "'pearson' or"),
    (lambda t: retrieval.correlation(retrieval.Target(
        'u', 1.0, {'s': 1.0}, {'s': 1.0})), 'at least 4'),
    (lambda t: retrieval.mean_correlation([t, t]), 'at least 2'),
])
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(random_targets()[0])


def test_pearson_equals_scipy():
  target = random_targets()[0]
  found = retrieval.correlation(target)
  names = list(target.scores)
  theirs = scipy.stats.pearsonr(
      [target.similarity[n] for n in names], [target.scores[n] for n in names])
  interval = theirs.confidence_interval(0.95)
  assert (found.r, found.p, found.low, found.high, found.count) == (
      pytest.approx((theirs.statistic, theirs.pvalue, *interval, 7)))


def test_spearman_is_of_ranks():
  names = [f's{i}' for i in range(8)]
  x = np.linspace(0, 1, 8)
  target = retrieval.Target('t', 1.0, dict(zip(names, np.exp(9 * x).tolist(),
                                               strict=True)),
                            dict(zip(names, x.tolist(), strict=True)))
  assert retrieval.correlation(target, 'spearman').r == pytest.approx(1)
  assert retrieval.correlation(target).r < 0.9


@pytest.mark.parametrize('method', ['pearson', 'spearman'])
def test_interval_covers_the_truth_as_often_as_it_says(method):
  rng = np.random.default_rng(1)
  inside, tries, truth = 0, 400, 0.6
  expected = truth if method == 'pearson' else (
      6 / np.pi * np.arcsin(truth / 2))
  for _ in range(tries):
    pairs = rng.multivariate_normal([0, 0], [[1, truth], [truth, 1]], 30)
    names = [str(i) for i in range(30)]
    found = retrieval.correlation(retrieval.Target(
        't', 0.0, dict(zip(names, pairs[:, 0].tolist(), strict=True)),
        dict(zip(names, pairs[:, 1].tolist(), strict=True))), method)
    inside += found.low <= expected <= found.high
  assert 0.91 <= inside / tries <= 0.985


def test_a_constant_has_no_correlation():
  names = ['a', 'b', 'c', 'd']
  target = retrieval.Target(
      't', 1.0, dict.fromkeys(names, 5.0),
      dict(zip(names, [0.1, 0.2, 0.3, 0.4], strict=True)))
  assert math.isnan(retrieval.correlation(target).r)


def test_mean_is_over_tasks_and_its_interval_over_draws_of_tasks():
  targets = random_targets(targets=6)
  found = retrieval.mean_correlation(targets, resamples=4000)
  each = [retrieval.correlation(target).r for target in targets]
  assert found.r == pytest.approx(np.mean(each)) and found.count == 6
  drawn = np.random.default_rng(5).choice(each, (4000, 6)).mean(axis=1)
  assert (found.low, found.high) == pytest.approx(
      np.percentile(drawn, [2.5, 97.5]), abs=0.03)
  # A second seed of each task makes no task more.
  copies = random_targets(targets=6)
  twice = retrieval.mean_correlation([*targets, *copies], resamples=4000)
  assert (twice.r, twice.low, twice.high, twice.count) == (
      pytest.approx((found.r, found.low, found.high, 6)))
