"""Metrics of prompt recycling."""

from collections.abc import Callable, Sequence
from typing import Any


def prefix_metric_names(
    targets: Sequence[Any],
    scores: Sequence[float],
    metric_prefix: str,
    metric_fn: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
  """A metric of scores under other names: '{prefix}_{name}'.

  So one task, whose examples are scored once, can report a metric twice.

  Args:
    targets: of the metric.
    scores: of the metric.
    metric_prefix: the prefix.
    metric_fn: the metric.

  Returns:
    Its figures.
  """
  return {f'{metric_prefix}_{name}': value
          for name, value in metric_fn(targets, scores).items()}
