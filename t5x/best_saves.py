"""Keeps the saves of a run that did best, rather than its last ones."""

from collections.abc import Sequence
import json
import logging
import math
from typing import Any

from etils import epath
from t5x import run_saves


class SaveBestCheckpointer(run_saves.Checkpointer):
  """Keeps the `keep` best saves by a metric, and always the last one."""

  def __init__(
      self,
      directory: str,
      *,
      metric_name_to_monitor: str = 'train/accuracy',
      metric_mode: str = 'max',
      keep_checkpoints_without_metrics: bool = True,
      force_keep_period: int | None = None,
      **options: Any,
  ):
    """Nothing is read yet.

    Args:
      directory: the run's folder.
      metric_name_to_monitor: a folder below it and a name in its figures:
        `train/accuracy`, `training_eval/<task>/loss`,
        `inference_eval/<task>/<metric>`.
      metric_mode: 'max' or 'min'.
      keep_checkpoints_without_metrics: keep saves of steps at which the metric
        was not written; False removes them.
      force_keep_period: saves of its multiples stay.
      **options: see the base class.

    Raises:
      ValueError: for another mode, or a metric without a folder.
    """
    if metric_mode not in ('max', 'min'):
      raise ValueError(
          f'SaveBestCheckpointer.metric_mode is {metric_mode!r}; expected '
          "'max' or 'min'.")
    if '/' not in metric_name_to_monitor:
      raise ValueError(
          'SaveBestCheckpointer.metric_name_to_monitor is '
          f'{metric_name_to_monitor!r}; expected a folder and a name, for '
          "instance 'train/accuracy'.")
    super().__init__(directory, **options)
    self._metric = metric_name_to_monitor
    self._sign = 1 if metric_mode == 'max' else -1
    self._keep_without = keep_checkpoints_without_metrics
    self._force_keep_period = force_keep_period

  def _superfluous(self, steps: Sequence[int], keep: int) -> Sequence[int]:
    """See base class."""
    period = self._force_keep_period
    candidates = [step for step in steps[:-1]
                  if not period or step % period]
    values = metric_by_step(self.directory, self._metric)
    if not values:
      logging.warning(
          'No figure of %s is called %s yet, so that no save is known to be '
          'better than another.', self.directory, self._metric)
    ranked = sorted((step for step in steps if step in values), reverse=True,
                    key=lambda step: (self._sign * values[step], step))
    return [step for step in candidates
            if step in ranked[keep:]
            or (step not in values and not self._keep_without)]


def metric_by_step(directory: str, name: str) -> dict[int, float]:
  """The values of one figure of a run.

  Args:
    directory: the run's folder.
    name: see `SaveBestCheckpointer`.

  Returns:
    From step to value; values that are no finite number are left out.
  """
  parts = name.split('/')
  values: dict[int, float] = {}
  for i in range(1, len(parts)):
    run, figure = '/'.join(parts[:i]), '/'.join(parts[i:])
    for path in (f'{run}/metrics.jsonl', f'{run}-metrics.jsonl'):
      for row in rows(epath.Path(directory) / path):
        value = row.get(figure)
        if isinstance(value, int | float) and math.isfinite(value):
          values[row['step']] = value
  return values


def rows(file: epath.Path) -> list[dict[str, Any]]:
  """The rows of a file of figures; a last one that was cut off is not."""
  found = []
  for line in file.read_text().splitlines() if file.exists() else ():
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if isinstance(row, dict) and isinstance(row.get('step'), int):
      found.append(row)
  return found
