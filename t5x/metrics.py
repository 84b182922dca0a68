"""Metrics as mergeable sums: `merge` adds parts, `compute` divides at the end.

A step returns a dictionary of these; adding dictionaries over steps, over
microbatches or over hosts and computing once gives the same figure as one big
batch would. `merge` works on the device and on the host, `compute` on the host.
"""

from collections.abc import Mapping
from typing import Any, Self

import flax.struct
import jax
from jaxtyping import Array, Float

Scalar = Float[Array, ''] | float


class Metric(flax.struct.PyTreeNode):
  """A tuple of sums with a rule that turns them into one number."""

  def merge(self, other: Self) -> Self:
    """The metric of both parts together: their sums, field by field."""
    return jax.tree.map(lambda a, b: a + b, self, other)

  def compute(self) -> float:
    """The number to report."""
    raise NotImplementedError(type(self).__name__)


class Sum(Metric):
  """`total`."""

  total: Scalar

  def compute(self) -> float:
    return float(self.total)


class Average(Metric):
  """`total / count`; zero where nothing was counted."""

  total: Scalar
  count: Scalar

  def compute(self) -> float:
    return float(self.total) / float(self.count) if self.count else 0.0


class AveragePerStep(Metric, kw_only=True):
  """`total / steps`: a per-step quantity averaged over the merged steps."""

  total: Scalar
  steps: Scalar = 1.0

  def compute(self) -> float:
    return float(self.total) / float(self.steps)


class TimeRate(Metric, kw_only=True):
  """`numerator / seconds`; the host fills in the seconds when it reports."""

  numerator: Scalar
  duration: Scalar | None = None

  def compute(self) -> float:
    if self.duration is None:
      raise ValueError(
          'A TimeRate needs its duration: metrics.set_time(metrics, seconds).')
    return float(self.numerator) / float(self.duration)


class StepsPerTime(TimeRate, kw_only=True):
  """Steps per second: a `TimeRate` that counts one per step."""

  numerator: Scalar = 1.0


Metrics = Mapping[str, Any]  # From name to a Metric.


def merge(first: Metrics | None, second: Metrics) -> Metrics:
  """Merges two dictionaries of metrics with the same keys; None is empty.

  Raises:
    KeyError: for a key that only one of them has.
  """
  if first is None:
    return second
  return {name: first[name].merge(second[name])
          for name in sorted({*first, *second})}


def as_one_step(metrics: Metrics) -> Metrics:
  """Metrics merged over the parts of one step, counted as that one step."""

  def once(metric: Metric) -> Metric:
    if isinstance(metric, AveragePerStep):
      return metric.replace(steps=1.0)
    if isinstance(metric, StepsPerTime):
      return metric.replace(numerator=1.0)
    return metric

  return {name: once(metric) for name, metric in metrics.items()}


def to_host(metrics: Metrics) -> Metrics:
  """Fetches a step's metrics as Python floats, so that sums are exact there."""
  return jax.tree.map(float, jax.device_get(metrics))


def set_time(metrics: Metrics, seconds: float) -> Metrics:
  """Gives every `TimeRate` the seconds that its numerator was counted over."""
  return {
      name: m.replace(duration=seconds) if isinstance(m, TimeRate) else m
      for name, m in metrics.items()
  }


def compute(metrics: Metrics) -> dict[str, float]:
  """Reports each metric as a number."""
  return {name: m.compute() for name, m in metrics.items()}
