"""Which source prompts a new task should start from, and how good that is.

Sources are ranked by their similarity to the target's own prompt after few
steps; the best k are tried, and the best of them is kept. `best_of_top_k` says
what that would have given, from transfers that were all run (Vu et al., SPoT,
table 2); `correlation` says how well similarity predicts transfer.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np
import scipy.stats


@dataclasses.dataclass(frozen=True)
class Target:
  """What is known of one target task, or of one seed of it.

  Attributes:
    name: of the task.
    baseline: score in percent without transfer.
    scores: score in percent by source prompt that the task started from.
    similarity: to the task's own prompt, by source prompt.
  """

  name: str
  baseline: float
  scores: Mapping[str, float]
  similarity: Mapping[str, float]

  def __post_init__(self):
    if not self.scores or self.scores.keys() != self.similarity.keys():
      odd = sorted(self.scores.keys() ^ self.similarity.keys())[:3]
      raise ValueError(
          f'target {self.name!r} has {len(self.scores)} scores and '
          f'{len(self.similarity)} similarities; expected both of every '
          f'source prompt, but one is missing of {odd}.')

  @property
  def ranking(self) -> list[str]:
    """Source prompts, the most similar first."""
    return rank(self.similarity)


@dataclasses.dataclass(frozen=True)
class Choice:
  """What a way to choose sources gives on average over targets.

  Attributes:
    k: sources that are tried.
    score: of the best of them, in percent.
    absolute_gain: over the baseline, in points.
    relative_error_reduction: in percent, see `relative_error_reduction`.
    oracle_share: of the gain that trying all sources gives, in percent; NaN
      if these give none.
    search_saved: share of the sources that are not tried, in percent.
  """

  k: int
  score: float
  absolute_gain: float
  relative_error_reduction: float
  oracle_share: float
  search_saved: float


@dataclasses.dataclass(frozen=True)
class Correlation:
  """How similarity and transfer go together.

  Attributes:
    r: the coefficient.
    low: lower end of its confidence interval.
    high: upper end.
    p: probability of an r as large, on either side, if there were no relation.
    count: pairs.
  """

  r: float
  low: float
  high: float
  p: float
  count: int


def rank(similarity: Mapping[str, float]) -> list[str]:
  """Names by similarity, the greatest first; by name where equal.

  Args:
    similarity: of every name.

  Returns:
    The names.

  Raises:
    ValueError: for a similarity that is not a number.
  """
  if bad := [name for name, value in similarity.items() if np.isnan(value)]:
    raise ValueError(f'the similarity of {bad[0]!r} is not a number.')
  return sorted(similarity, key=lambda name: (-similarity[name], name))


def relative_error_reduction(score: float, baseline: float) -> float:
  """Which share of the baseline's errors is gone: (s - b) / (100 - b).

  Args:
    score: in percent.
    baseline: in percent, below 100.

  Returns:
    The share in percent; negative if there are more errors than before.

  Raises:
    ValueError: for a baseline that has no errors.
  """
  if baseline >= 100:
    raise ValueError(
        f'a baseline of {baseline} percent has no errors to reduce; leave the '
        'target out.')
  return 100 * (score - baseline) / (100 - baseline)


def best_of_top_k(
    targets: Sequence[Target], ks: Sequence[int] | None = None
) -> list[Choice]:
  """What the best of the k most similar sources gives, and the oracle.

  Args:
    targets: all with the same number of source prompts; several seeds of a
      task are several of them.
    ks: numbers of sources that are tried; None is 1 to all. All is the oracle.

  Returns:
    A row for each k.

  Raises:
    ValueError: if there are no targets, their sources differ in number, or a
      k is not among them.
  """
  counts = {len(target.scores) for target in targets}
  if len(counts) != 1:
    raise ValueError(
        f'targets have {sorted(counts)} source prompts; expected targets, all '
        'with the same number.')
  (count,) = counts
  ks = range(1, count + 1) if ks is None else ks
  for k in ks:
    if not 1 <= k <= count:
      raise ValueError(f'k is {k}; there are {count} source prompts.')
  baselines = np.array([target.baseline for target in targets])
  # By target, the best score within the first 1, 2, ... of its ranking.
  best = np.array([
      np.maximum.accumulate([target.scores[name] for name in target.ranking])
      for target in targets])
  oracle = float((best[:, -1] - baselines).mean())
  return [_choice(k, best[:, k - 1], baselines, oracle, count) for k in ks]


def _choice(
    k: int, best: np.ndarray, baselines: np.ndarray, oracle: float, count: int
) -> Choice:
  """The row of a k from the best score of every target."""
  gain = float((best - baselines).mean())
  reductions = [relative_error_reduction(score, baseline)
                for score, baseline in zip(best, baselines, strict=True)]
  share = 100 * gain / oracle if oracle > 0 else float('nan')
  return Choice(k, float(best.mean()), gain, float(np.mean(reductions)), share,
                100 * (1 - k / count))


def correlation(
    target: Target, method: str = 'pearson', confidence: float = 0.95
) -> Correlation:
  """How well similarity predicts the score, over the sources of a target.

  Args:
    target: with at least four source prompts.
    method: 'pearson' (the paper's) or 'spearman'.
    confidence: of the interval, by Fisher's transformation; for Spearman's
      coefficient with Bonett and Wright's standard error.

  Returns:
    The coefficient; not a number where one side is constant.

  Raises:
    ValueError: for fewer sources or another method.
  """
  names = sorted(target.scores)
  if len(names) < 4:
    raise ValueError(
        f'target {target.name!r} has {len(names)} source prompts; a confidence '
        'interval needs at least 4.')
  x, y = (np.array([values[name] for name in names])
          for values in (target.similarity, target.scores))
  if np.ptp(x) == 0 or np.ptp(y) == 0:
    nan = float('nan')
    return Correlation(nan, nan, nan, nan, len(names))
  if method == 'pearson':
    result = scipy.stats.pearsonr(x, y)
    error = 1 / np.sqrt(len(names) - 3)
  elif method == 'spearman':
    result = scipy.stats.spearmanr(x, y)
    error = np.sqrt((1 + result.statistic**2 / 2) / (len(names) - 3))
  else:
    raise ValueError(
        f"method is {method!r}; expected 'pearson' or 'spearman'.")
  r = float(result.statistic)
  low, high = _interval(r, float(error), confidence)
  return Correlation(r, low, high, float(result.pvalue), len(names))


def _interval(r: float, error: float, confidence: float) -> tuple[float, float]:
  """An interval that is symmetric under Fisher's transformation."""
  # A coefficient of exactly one would be infinite there.
  centre = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
  width = error * scipy.stats.norm.ppf((1 + confidence) / 2)
  return float(np.tanh(centre - width)), float(np.tanh(centre + width))


def mean_correlation(
    targets: Sequence[Target],
    method: str = 'pearson',
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Correlation:
  """The mean over targets of how well similarity predicts transfer.

  Seeds of one task, or prompts of one source, are no independent targets, so
  whole tasks are drawn for the interval: a bootstrap over targets' names.

  Args:
    targets: targets; those whose coefficient is not a number are left out.
    method: see `correlation`.
    confidence: of the interval.
    resamples: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    The mean; `p` is not a number, `count` is the number of tasks.

  Raises:
    ValueError: if fewer than two tasks are left.
  """
  by_task: dict[str, list[float]] = {}
  for target in targets:
    r = correlation(target, method).r
    if not np.isnan(r):
      by_task.setdefault(target.name, []).append(r)
  means = np.array([np.mean(found) for found in by_task.values()])
  if len(means) < 2:
    raise ValueError(
        f'{len(means)} target tasks have a correlation; a mean over tasks '
        'needs at least 2.')
  low, high = scipy.stats.bootstrap(
      (means,), np.mean, method='percentile', n_resamples=resamples,
      confidence_level=confidence, rng=np.random.default_rng(seed),
  ).confidence_interval
  return Correlation(
      float(means.mean()), float(low), float(high), float('nan'), len(means))
