"""Metrics of classes and numbers, and of groups of answers.

All are in percent and take `targets, predictions`, by which names SeqIO knows
that a model's text is wanted. Names are those of the T5 package. Libraries are
imported when a metric is computed, so that tasks are registered quickly.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Figures = dict[str, float]
Metric = Callable[..., dict[str, Any]]


def check_pairs(targets: Sequence[Any], predictions: Sequence[Any]) -> None:
  """Raises a ValueError unless there are as many of both, and one at least."""
  if not len(targets) or len(targets) != len(predictions):
    raise ValueError(
        f'There are {len(targets)} targets and {len(predictions)} predictions; '
        'expected as many of both, and at least one.')


def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> Figures:
  """How many predictions are the target.

  Args:
    targets: classes or texts.
    predictions: the same.

  Returns:
    `accuracy`.
  """
  check_pairs(targets, predictions)
  right = sum(t == p for t, p in zip(targets, predictions, strict=True))
  return {'accuracy': 100 * float(right) / len(targets)}


def exact_match(targets: Sequence[Any], predictions: Sequence[Any]) -> Figures:
  """Whether all predictions are the target; for groups of answers.

  Args:
    targets: classes or texts.
    predictions: the same.

  Returns:
    `exact_match`, 0 or 100.
  """
  check_pairs(targets, predictions)
  same = all(t == p for t, p in zip(targets, predictions, strict=True))
  return {'exact_match': 100.0 * same}


def f1_score_with_invalid(
    targets: Sequence[int], predictions: Sequence[int]) -> Figures:
  """F1 of class 1 of two; what is neither class is wrong.

  Args:
    targets: 0 or 1.
    predictions: any number; what is not 0 or 1 counts as the class that the
      target is not.

  Returns:
    `f1`; 0 where nothing is of class 1.
  """
  from sklearn import metrics  # noqa: PLC0415  Slow; see above.

  check_pairs(targets, predictions)
  truth, found = np.asarray(targets), np.asarray(predictions)
  found = np.where(np.isin(found, (0, 1)), found, 1 - truth)
  return {'f1': 100 * float(metrics.f1_score(truth, found, zero_division=0))}


def mean_multiclass_f1(num_classes: int, **metric_fn_kwargs: Any) -> Metric:
  """The unweighted mean of the F1 of every class.

  Args:
    num_classes: the classes are 0 to this.
    **metric_fn_kwargs: passed to scikit-learn's `fbeta_score`.

  Returns:
    A metric `mean_{num_classes}class_f1`.
  """
  options = {'beta': 1, 'labels': range(num_classes), 'average': 'macro',
             'zero_division': 0} | metric_fn_kwargs

  def mean_f1(targets: Sequence[int], predictions: Sequence[int]) -> Figures:
    from sklearn import metrics  # noqa: PLC0415  Slow; see above.

    check_pairs(targets, predictions)
    score = metrics.fbeta_score(targets, predictions, **options)
    return {f'mean_{num_classes}class_f1': 100 * float(score)}

  return mean_f1


def matthews_corrcoef(
    targets: Sequence[int], predictions: Sequence[int]) -> Figures:
  """Matthews' correlation; what is no class is a class of its own.

  Args:
    targets: classes.
    predictions: classes, or other numbers.

  Returns:
    `matthews_corrcoef`; 0 where one side is constant.
  """
  from sklearn import metrics  # noqa: PLC0415  Slow; see above.

  check_pairs(targets, predictions)
  if _constant(targets) or _constant(predictions):
    return {'matthews_corrcoef': 0.0}  # scikit-learn's, without its warning.
  score = metrics.matthews_corrcoef(targets, predictions)
  return {'matthews_corrcoef': 100 * float(score)}


def pearson_corrcoef(
    targets: Sequence[float], predictions: Sequence[float]) -> Figures:
  """Pearson's correlation.

  Args:
    targets: numbers.
    predictions: numbers.

  Returns:
    `pearson_corrcoef`; 0 where one side is constant, for which it is not
    defined, so that figures of such a model can be compared.
  """
  return {'pearson_corrcoef': _correlation('pearsonr', targets, predictions)}


def spearman_corrcoef(
    targets: Sequence[float], predictions: Sequence[float]) -> Figures:
  """Spearman's correlation, that of the ranks.

  Args:
    targets: numbers.
    predictions: numbers.

  Returns:
    `spearman_corrcoef`; 0 where one side is constant.
  """
  return {'spearman_corrcoef': _correlation('spearmanr', targets, predictions)}


def _correlation(
    name: str, targets: Sequence[float], predictions: Sequence[float]) -> float:
  """A correlation of scipy in percent, 0 where it is not defined."""
  from scipy import stats  # noqa: PLC0415  Slow; see above.

  check_pairs(targets, predictions)
  if _constant(targets) or _constant(predictions):
    return 0.0
  return 100 * float(getattr(stats, name)(targets, predictions)[0])


def _constant(values: Sequence[Any]) -> bool:
  return all(value == values[0] for value in values)


def mean_group_metric(
    metric_fn: Metric, group_key: str = 'group', value_key: str = 'value'
) -> Metric:
  """The mean over groups of a metric of each group.

  Args:
    metric_fn: the metric, of values.
    group_key: field of a target that says which group it is of.
    value_key: field of targets and predictions that has their value.

  Returns:
    A metric with the same names.
  """
  def mean_over_groups(
      targets: Sequence[Mapping[str, Any]],
      predictions: Sequence[Mapping[str, Any]],
  ) -> Figures:
    check_pairs(targets, predictions)
    groups: dict[Any, tuple[list, list]] = {}
    for target, prediction in zip(targets, predictions, strict=True):
      group = groups.setdefault(target[group_key], ([], []))
      group[0].append(target[value_key])
      group[1].append(prediction[value_key])
    scores = [metric_fn(*group) for group in groups.values()]
    return {name: float(np.mean([score[name] for score in scores]))
            for name in scores[0]}

  return mean_over_groups


def deduplicate_metric(
    metric_fn: Metric, group_key: str = 'group', value_key: str = 'value'
) -> Metric:
  """A metric of the first example of every group, as for ReCoRD.

  Args:
    metric_fn: the metric, of values.
    group_key: field of a target that says which group it is of.
    value_key: field of targets and predictions that has their value.

  Returns:
    A metric with the same names.
  """
  def first_of_groups(
      targets: Sequence[Mapping[str, Any]],
      predictions: Sequence[Mapping[str, Any]],
  ) -> dict[str, Any]:
    check_pairs(targets, predictions)
    first: dict[Any, tuple] = {}
    for target, prediction in zip(targets, predictions, strict=True):
      first.setdefault(
          target[group_key], (target[value_key], prediction[value_key]))
    return metric_fn([t for t, _ in first.values()],
                     [p for _, p in first.values()])

  return first_of_groups
