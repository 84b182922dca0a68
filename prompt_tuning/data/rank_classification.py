"""Classification by scoring every label of an example and taking the best.

    preprocessor     one example per label, with `idx` (example, label)
    SeqIO            scores each, as the metric has an argument `scores`
    postprocessor    what the metric must know of each
    metric           groups the scores by example

Names, fields and figures are those of the T5 package.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import numpy as np
import tensorflow as tf

Example = Mapping[str, Any]
# The fields `idx`, `is_correct`, `weight`, and the number of target tokens.
Target = tuple[Sequence[int], bool, float, int]
MODES = ('train', 'eval', 'fewshot_eval')


def rank_classification(
    ds: tf.data.Dataset,
    inputs_fn: Callable[[Example], Any],
    targets_fn: Callable[[Example], Any],
    is_correct_fn: Callable[[Example], Any],
    weight_fn: Callable[[Example], Any] | None = None,
    mode: str = 'eval',
    passthrough_feature_keys: Sequence[str] | None = None,
) -> tf.data.Dataset:
  """Makes an example of every label of an example.

  Args:
    ds: examples.
    inputs_fn: from an example to the texts `[C]` in front of each label.
    targets_fn: from an example to its labels `[C]`.
    is_correct_fn: from an example to whether each label is right, `[C]`.
    weight_fn: from an example to its weight in the metric, `[]`.
    mode: 'train' keeps the right labels only, 'eval' all, and 'fewshot_eval'
      keeps the labels of an example together, every field with a first axis C.
    passthrough_feature_keys: fields that are kept.

  Returns:
    Examples with `idx`, `inputs`, `targets`, `is_correct`, the weight if there
    is one, and the fields that are kept.

  Raises:
    ValueError: for another mode.
  """
  if mode not in MODES:
    raise ValueError(
        f'rank_classification: mode is {mode!r}; expected one of {MODES}.')

  def with_labels(index: tf.Tensor, example: Example) -> Example:
    targets = tf.convert_to_tensor(targets_fn(example))
    count = tf.shape(targets)[0]
    number = tf.cast(index, tf.int32)

    def repeated(value: tf.Tensor) -> tf.Tensor:
      return tf.repeat(value[None], count, axis=0)

    made = {
        'idx': tf.stack([repeated(number), tf.range(count)], axis=1),
        'inputs': tf.convert_to_tensor(inputs_fn(example)),
        'targets': targets,
        'is_correct': tf.cast(is_correct_fn(example), tf.bool),
    }
    if weight_fn is not None:
      made['weight'] = repeated(tf.cast(weight_fn(example), tf.float32))
    for key in passthrough_feature_keys or ():
      made[key] = repeated(example[key])
    return made

  ds = ds.enumerate().map(with_labels)
  if mode == 'fewshot_eval':
    return ds
  ds = ds.unbatch()
  return ds.filter(lambda x: x['is_correct']) if mode == 'train' else ds


def rank_labels(
    ds: tf.data.Dataset, labels: Sequence[str], mode: str = 'eval'
) -> tf.data.Dataset:
  """`rank_classification` of `inputs` and `targets` that are texts.

  Args:
    ds: examples; `targets` is one of the labels.
    labels: the labels; their order is that of the metric's classes.
    mode: see `rank_classification`.

  Returns:
    See `rank_classification`.
  """
  return rank_classification(
      ds,
      inputs_fn=lambda x: tf.repeat(x['inputs'][None], len(labels)),
      targets_fn=lambda x: list(labels),
      is_correct_fn=lambda x: tf.equal(list(labels), x['targets']),
      mode=mode)


def postprocess(
    score: float, example: Example | None = None, is_target: bool = False
) -> float | Target:
  """What the metric must know of an example; scores stay as they are."""
  if not is_target or example is None:
    return score
  return (tuple(int(i) for i in example['idx']), bool(example['is_correct']),
          float(example.get('weight', 1.0)), len(example['targets']))


def metric(
    *, num_classes: int | None = None, normalize_by_target_length: bool = False
) -> Callable[..., dict[str, float]]:
  """A metric for `seqio.Task.metric_fns`.

  Args:
    num_classes: see `rank_classification_metric`.
    normalize_by_target_length: see `rank_classification_metric`.

  Returns:
    A function of targets and scores.
  """
  def rank_classification_scores(
      targets: Sequence[Target], scores: Sequence[float]) -> dict[str, float]:
    return rank_classification_metric(
        targets, scores, num_classes=num_classes,
        normalize_by_target_length=normalize_by_target_length)

  return rank_classification_scores


def rank_classification_metric(
    targets: Sequence[Target],
    scores: Sequence[float],
    *,
    num_classes: int | None = None,
    normalize_by_target_length: bool = False,
) -> dict[str, float]:
  """How often the best label is a right one, and more where it is defined.

  Args:
    targets: of `postprocess`, in any order.
    scores: log likelihoods.
    num_classes: labels per example; None if that varies, which leaves the
      accuracy only.
    normalize_by_target_length: divide a score by the number of target tokens,
      the end token among them.

  Returns:
    In percent: `accuracy`; where every example has one right label also `f1`,
    `auc-roc` and `auc-pr` of the second of two classes, or
    `mean_<C>class_f1` of more. Areas are left out where all examples are of
    one class.

  Raises:
    ValueError: if the examples do not have `num_classes` labels.
  """
  groups: dict[int, list[tuple[int, bool, float, float]]] = {}
  for (idx, is_correct, weight, length), score in zip(
      targets, scores, strict=True):
    value = float(score) / (length if normalize_by_target_length else 1)
    groups.setdefault(idx[0], []).append((idx[1], is_correct, weight, value))
  rows = [sorted(group) for _, group in sorted(groups.items())]
  best = np.array([np.argmax([r[3] for r in row]) for row in rows])
  right = np.array(
      [row[i][1] for row, i in zip(rows, best, strict=True)], np.float64)
  weights = np.array([row[0][2] for row in rows])
  figures = {'accuracy': _percent(np.average(right, weights=weights))}
  if num_classes is None:
    return figures
  if wrong := [len(row) for row in rows if len(row) != num_classes]:
    raise ValueError(
        f'rank_classification: num_classes is {num_classes}, but an example '
        f'has {wrong[0]} labels.')
  correct = np.array([[r[1] for r in row] for row in rows])
  if (correct.sum(axis=1) != 1).any():
    return figures  # Several labels are right; classes are not defined.
  truth = correct.argmax(axis=1)
  f1 = functools.partial(_f1, truth, best, weights)
  if num_classes > 2:
    mean = np.mean([f1(label) for label in range(num_classes)])
    return figures | {f'mean_{num_classes}class_f1': _percent(mean)}
  values = np.array([[r[3] for r in row] for row in rows])
  # The logit of the second class's probability orders as the probability does.
  return figures | {'f1': _percent(f1(1))} | _areas(
      truth == 1, values[:, 1] - values[:, 0], weights)


def _percent(share: Any) -> float:
  """As a plain number that JSON can hold."""
  return 100.0 * float(share)


def _f1(
    truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray, label: int
) -> float:
  """Harmonic mean of precision and recall; 0 where nothing is right."""
  is_true, is_predicted = truth == label, predicted == label
  both = weights[is_true & is_predicted].sum()
  total = weights[is_true].sum() + weights[is_predicted].sum()
  return 2 * both / total if total else 0.0


def _areas(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
  """Areas under the ROC curve and, as average precision, under the PR curve."""
  # Total weight of both classes at every distinct score, the highest first.
  _, place = np.unique(-scores, return_inverse=True)
  hits = np.bincount(place, weights * positive)
  misses = np.bincount(place, weights * ~positive)
  if not hits.sum() or not misses.sum():
    return {}
  above = np.cumsum(hits)
  # A miss counts the hits above it, and half of those at the same score.
  roc = (misses * (above - hits / 2)).sum() / (hits.sum() * misses.sum())
  precision = above / (above + np.cumsum(misses))
  return {'auc-roc': _percent(roc),
          'auc-pr': _percent((precision * hits).sum() / hits.sum())}
