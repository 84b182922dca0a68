"""The training loop and what happens between its steps.

The order is a contract: evaluate, save, take a batch, step, report. Saving
before the batch is taken is what makes a resumed run equal to one that was
never interrupted; reporting one step behind keeps the device from waiting.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import signal
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from t5x import checkpoints
from t5x import metric_writers
from t5x import metrics as metrics_lib
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib

TrainState = train_state_lib.TrainState


@dataclasses.dataclass(frozen=True)
class Moment:
  """A place between two steps.

  Attributes:
    step: absolute step that has been reached.
    state: the state after it.
    entry: this process has only just begun or resumed here.
    finished: it is the last step.
    stopping: the process has been asked to stop here.
  """

  step: int
  state: TrainState
  entry: bool = False
  finished: bool = False
  stopping: bool = False


@dataclasses.dataclass(frozen=True)
class Hook:
  """Something that is done now and then.

  Periods count from the run's first step, so a resumed run keeps its grid.

  Attributes:
    run: what is done.
    period: steps between two times; 0 waits for the last step.
    first_step: step that the period counts from.
    on_entry: also do it before the first step of this process.
    on_stop: also do it when the process is asked to stop.
    also_at: further absolute steps.
    timing: name under which rows report the seconds that it took.
  """

  run: Callable[[Moment], None]
  period: int
  first_step: int
  on_entry: bool = False
  on_stop: bool = False
  also_at: Collection[int] = ()
  timing: str | None = None

  def due(self, moment: Moment) -> bool:
    """Whether it is time."""
    if moment.entry:
      return self.on_entry
    since = moment.step - self.first_step
    on_grid = self.period > 0 and since % self.period == 0
    return (on_grid or moment.finished or moment.step in self.also_at
            or (moment.stopping and self.on_stop))


class Stop:
  """Notices SIGTERM, so that a run can save itself before it ends.

  Attributes:
    decided: the run itself wants to end here; the same in all processes.
  """

  def __init__(self) -> None:
    self._requested = False
    self.decided = False

  def _request(self, *unused_args: Any) -> None:
    """The signal's handler."""
    self._requested = True

  @contextlib.contextmanager
  def listening(self) -> Iterator['Stop']:
    """Within it, SIGTERM is noted instead of ending the process.

    Among several processes JAX has a handler of its own, which makes them
    agree on the step; it is left in place.
    """
    if jax.process_count() > 1:
      yield self
      return
    before = signal.signal(signal.SIGTERM, self._request)
    try:
      yield self
    finally:
      signal.signal(signal.SIGTERM, before)

  @property
  def noted(self) -> bool:
    """Whether a process alone has been asked to stop; it may do so anywhere."""
    return self._requested

  def requested(self, step: int) -> bool:
    """Whether to stop at this step; several processes agree on the step."""
    if jax.process_count() > 1:
      return bool(multihost_utils.reached_preemption_sync_point(step))
    return self._requested


class Reporter:
  """Turns the metrics of steps into rows, one step behind the device."""

  def __init__(
      self,
      writer: metric_writers.MetricWriter,
      *,
      period: int,
      first_step: int,
      initial: Mapping[str, jax.Array],
      window: Mapping[str, Sequence[float]],
      model_dir: str,
  ):
    """Begins or continues a window of steps.

    Args:
      writer: takes the rows.
      period: steps per row.
      first_step: step that the period counts from.
      initial: trainable parameters as the run began with them; the norm of
        their change is reported. Empty reports none.
      window: sums of the window that an interrupted run was in.
      model_dir: the run's folder, named by the error of a bad step.
    """
    self._writer = writer
    self._period = period
    self._first_step = first_step
    self._initial = dict(initial)
    self._model_dir = model_dir
    self._window: metrics_lib.Metrics | None = None
    self._unmerged = dict(window)
    self._pending: tuple[int, Any, Any] | None = None
    self.row: dict[str, float] = {}  # The last one that was written.
    self._began = self._opened = time.monotonic()
    self._learning_rate: float | None = None
    self._seconds: dict[str, float] = {}
    self._change_norm = jax.jit(_change_norm)

  def push(
      self, step: int, metrics: metrics_lib.Metrics, state: TrainState
  ) -> None:
    """Takes the metrics of a step; reports the step before.

    Args:
      step: the absolute step that was reached.
      metrics: still on the device, perhaps still being computed.
      state: the state after the step.
    """
    self.drain()
    change = None
    if self._initial and self._row_due(step):
      change = self._change_norm(state.trainable, self._initial)
    self._pending = (step, metrics, change)

  def drain(self) -> None:
    """Waits for the last step and reports it.

    Raises:
      FloatingPointError: if its loss or a gradient was not finite.
    """
    if self._pending is None:
      return
    step, metrics, change = self._pending
    self._pending = None
    host = metrics_lib.to_host(metrics)
    if host[trainer_lib.NONFINITE].total:
      raise FloatingPointError(
          f'The loss or a gradient of step {step:,} is not finite. That state '
          f'was not saved; the last good save in {self._model_dir} is of step '
          f'{checkpoints.latest_step(self._model_dir)}. Lower the learning '
          'rate, or look at the batch of that step.')
    if 'learning_rate' in host:
      self._learning_rate = host['learning_rate'].compute()
    self._window = metrics_lib.merge(self._window, host)
    if self._unmerged:
      self._window = _continued(self._window, self._unmerged)
      self._unmerged = {}
    if self._row_due(step):
      self._report(step, change)

  def _row_due(self, step: int) -> bool:
    """Whether a row ends with this step."""
    return (step - self._first_step) % self._period == 0

  def _report(self, step: int, change: Any) -> None:
    """Writes the row of a full window."""
    assert self._window is not None
    now = time.monotonic()
    seconds = max(now - self._began, 1e-9)
    row = metrics_lib.compute(metrics_lib.set_time(self._window, seconds))
    del row[trainer_lib.NONFINITE]
    row |= _timing(row, seconds, now - self._opened) | self._seconds
    if self._learning_rate is not None:
      row['learning_rate/current'] = self._learning_rate
    if change is not None:
      row['change_norm'] = float(change)
    self._writer.write(step, row)
    self.row, self._window, self._began = row, None, now
    self._seconds = {}

  def window(self) -> dict[str, list[float]]:
    """Sums of the steps since the last row, as plain numbers."""
    if self._window is None:
      return {name: list(sums) for name, sums in self._unmerged.items()}
    return {name: [float(x) for x in jax.tree.leaves(metric)]
            for name, metric in self._window.items()}

  @contextlib.contextmanager
  def paused(self, timing: str | None = None) -> Iterator[None]:
    """Within it, time does not count for steps per second.

    Args:
      timing: name under which the next row reports the seconds spent here.
    """
    before = time.monotonic()
    yield
    spent = time.monotonic() - before
    self._began += spent
    self.add_seconds(timing, spent)

  def add_seconds(self, timing: str | None, seconds: float) -> None:
    """Has the next row report seconds under a name; None reports none."""
    if timing is not None:
      self._seconds[timing] = self._seconds.get(timing, 0.0) + seconds


def _continued(
    window: metrics_lib.Metrics, sums: Mapping[str, Sequence[float]]
) -> metrics_lib.Metrics:
  """A window with the sums of an interrupted one added.

  Rates count only what this process did, as its clock does.
  """
  return {
      name: metric if isinstance(metric, metrics_lib.TimeRate) else
            metric.merge(jax.tree.unflatten(
                jax.tree.structure(metric), sums[name]))
      for name, metric in window.items()
  }


def _timing(
    row: Mapping[str, float], seconds: float, uptime: float
) -> dict[str, float]:
  """T5X's further figures of time, from those that a row has."""
  found = {f'{name}_per_core': rate / jax.device_count()
           for name, rate in row.items()
           if name in ('timing/seqs_per_second',
                       'timing/target_tokens_per_second')}
  if found:
    found |= {'timing/seconds': seconds, 'timing/uptime': uptime,
              'timing/seqs': row['timing/seqs_per_second'] * seconds}
  return found


def _change_norm(
    now: Mapping[str, jax.Array], initial: Mapping[str, jax.Array]
) -> jax.Array:
  """Euclidean norm of the difference of two sets of parameters."""
  squares = [
      jnp.sum(jnp.square(now[path].astype(jnp.float32)
                         - initial[path].astype(jnp.float32)))
      for path in initial
  ]
  return jnp.sqrt(sum(squares, jnp.float32(0.0)))


def _between(
    moment: Moment, hooks: Sequence[Hook], reporter: Reporter, stop: Stop
) -> Moment:
  """Does what is due between two steps, in order.

  Something may decide or be told to stop in the meantime: then what is done on
  stopping is done here too, and not a step more.
  """
  left = list(hooks)
  while True:
    moment = dataclasses.replace(
        moment, stopping=moment.stopping or stop.noted or stop.decided)
    hook = next((hook for hook in left if hook.due(moment)), None)
    if hook is None:
      return moment
    left.remove(hook)
    reporter.drain()
    with reporter.paused(hook.timing):
      hook.run(moment)


def run(
    state: TrainState,
    trainer: trainer_lib.Trainer,
    batches: Iterator[Mapping[str, jax.Array]],
    *,
    total_steps: int,
    hooks: Sequence[Hook],
    reporter: Reporter,
    stop: Stop,
) -> tuple[int, TrainState]:
  """Steps until the last step, or until the process is asked to stop.

  Args:
    state: where to begin.
    trainer: makes the steps.
    batches: training data, on the devices.
    total_steps: the last absolute step.
    hooks: what is done between steps, in this order.
    reporter: takes the metrics of every step.
    stop: says when to stop early.

  Returns:
    The step that was reached and the state there.
  """
  step, entry = int(state.step), True
  while True:
    moment = Moment(step, state, entry=entry, finished=step >= total_steps,
                    stopping=stop.requested(step))
    moment = _between(moment, hooks, reporter, stop)
    if moment.finished or moment.stopping:
      reporter.drain()
      return step, state
    if entry:
      with reporter.paused('timing/train_iter_warmup'):
        batch = next(batches)
      with reporter.paused('timing/compilation_seconds'):
        trainer.compile_train(state, batch)
    else:
      batch = next(batches)
    state, metrics = trainer.train(state, batch)
    step, entry = step + 1, False
    reporter.push(step, metrics, state)
