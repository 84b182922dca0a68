"""Decisions to stop a run, taken from its metrics between two steps."""

import abc
from collections.abc import Mapping, Sequence
import enum
import logging
import math
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

MetricsByTask = Mapping[str, Mapping[str, Any]]


class ActionMode(enum.Enum):
  """After what an action runs; configurations spell it as a string."""

  TRAIN = 'TRAIN'
  TRAIN_EVAL = 'TRAIN_EVAL'
  INFER_EVAL = 'INFER_EVAL'


class BaseAction(abc.ABC):
  """Looks at metrics and says whether the run should stop."""

  @abc.abstractmethod
  def run(self, train_state: Any, metrics_by_task: MetricsByTask) -> bool:
    """Whether to stop.

    Args:
      train_state: the state that the metrics belong to.
      metrics_by_task: from task name to named numbers; the task of training
        metrics is `train`.

    Returns:
      True saves the run and ends it.
    """


ActionMap = Mapping[str, Sequence[BaseAction]]


def _number(
    metrics_by_task: MetricsByTask, task: str, metric: str, owner: str
) -> float | None:
  """A metric's value; None, with a warning, where there is no number."""
  value = metrics_by_task.get(task, {}).get(metric)
  if isinstance(value, int | float | np.number):
    return float(value)
  known = sorted(f'{t}: {", ".join(sorted(m))}'
                 for t, m in metrics_by_task.items())
  logging.warning('%s sees no number %r of %r, so it cannot stop the run; '
                  'there are %s.', owner, metric, task, '; '.join(known))
  return None


class EarlyStoppingAction(BaseAction):
  """Stops when a metric has not become better for some evaluations."""

  def __init__(
      self,
      metric: tuple[str, str],
      mode: str,
      patience: int = 3,
      atol: float = 0.0,
      rtol: float = 0.0,
  ):
    """Has seen nothing yet.

    Args:
      metric: names of the task and of its metric.
      mode: 'min' if smaller is better, 'max' if larger.
      patience: evaluations in a row without a better value.
      atol: a better value differs from the best one by more than
        `atol + rtol |best|`.
      rtol: see `atol`.

    Raises:
      ValueError: for another mode, or no patience.
    """
    if mode not in ('min', 'max'):
      raise ValueError(
          f'EarlyStoppingAction.mode is {mode!r}; expected min or max.')
    if patience < 1:
      raise ValueError(
          f'EarlyStoppingAction.patience is {patience}; expected 1 or more.')
    self._task, self._metric = metric
    self._sign = 1.0 if mode == 'max' else -1.0
    self._patience = patience
    self._atol, self._rtol = atol, rtol
    self._best: float | None = None
    self._without_gain = 0

  def run(self, train_state: Any, metrics_by_task: MetricsByTask) -> bool:
    """See base class."""
    del train_state
    value = _number(
        metrics_by_task, self._task, self._metric, type(self).__name__)
    if value is None:
      return False
    gain = (math.inf if self._best is None
            else self._sign * (value - self._best))
    if gain > self._atol + self._rtol * abs(self._best or 0.0):
      self._best, self._without_gain = value, 0
    else:
      self._without_gain += 1
    return self._without_gain >= self._patience


class TerminateOnNanAction(BaseAction):
  """Stops when a metric is not a number, or infinite."""

  def __init__(self, task: str, metric: str = 'loss'):
    self._task = task
    self._metric = metric

  def run(self, train_state: Any, metrics_by_task: MetricsByTask) -> bool:
    """See base class."""
    del train_state
    value = _number(
        metrics_by_task, self._task, self._metric, type(self).__name__)
    return value is not None and not math.isfinite(value)


def require_modes(actions: ActionMap | None) -> dict[ActionMode, list]:
  """The actions of every mode.

  Raises:
    ValueError: for a key that is no mode, or a value that is no list of
      actions.
  """
  known = {mode.name: mode for mode in ActionMode}
  found: dict[ActionMode, list] = {mode: [] for mode in ActionMode}
  for name, members in (actions or {}).items():
    if name not in known:
      raise ValueError(
          f'train.actions has the key {name!r}; expected one of '
          f'{", ".join(known)}.')
    for member in members:
      if not isinstance(member, BaseAction):
        raise ValueError(
            f'train.actions[{name!r}] holds {member!r}; expected a '
            'trainer.BaseAction. In gin, write @trainer.NAME() with the '
            'brackets.')
      found[known[name]].append(member)
  return found


def run_actions(
    mode: ActionMode,
    actions: Mapping[ActionMode, Sequence[BaseAction]],
    train_state: Any,
    metrics_by_task: MetricsByTask,
) -> bool:
  """Runs every action of a mode on the first process, which decides for all.

  Args:
    mode: after what.
    actions: by mode, see `require_modes`.
    train_state: the state that the metrics belong to.
    metrics_by_task: see `BaseAction.run`.

  Returns:
    Whether any of them wants the run to stop; the same in all processes.
  """
  members = actions.get(mode, ())
  stop = False
  if jax.process_index() == 0:
    # All of them see all metrics, whatever the first one decides.
    stop = any([member.run(train_state, metrics_by_task)
                for member in members])
  if members and jax.process_count() > 1:
    stop = bool(multihost_utils.broadcast_one_to_all(np.bool_(stop)))
  return stop
