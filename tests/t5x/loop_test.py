import io
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from t5x import loop
from t5x import metric_writers
from t5x import metrics as metrics_lib
from t5x import trainer as trainer_lib


class Rows:
  """A writer that keeps what it gets."""

  def __init__(self):
    self.rows = []

  def write(self, step, scalars):
    self.rows.append((step, dict(scalars)))

  def close(self):
    pass


class Steps:
  """A trainer whose state counts and whose loss is the step."""

  def __init__(self, log, bad_at=None):
    self.log = log
    self.bad_at = bad_at

  def compile_train(self, state, batch):
    pass

  def train(self, state, batch):
    self.log.append(f'step {batch}')
    step = float(state.step) + 1
    bad = step == self.bad_at
    state = state.replace(step=state.step + 1)
    return state, {
        'loss': metrics_lib.AveragePerStep(total=jnp.float32(step)),
        trainer_lib.NONFINITE: metrics_lib.Sum(jnp.float32(bad))}


def _state(step=0):
  return loop.TrainState(jnp.int32(step), {'w': jnp.zeros(2)}, {}, ())


def _reporter(writer, period=2, first_step=0, window=None, model_dir='/none'):
  return loop.Reporter(
      writer, period=period, first_step=first_step, initial={},
      window=window or {}, model_dir=model_dir)


def _run(log, *, total=4, hooks=(), start=0, reporter=None, stop=None,
         bad_at=None):
  def batches():
    for i in range(start, 100):
      log.append(f'take {i}')
      yield i

  return loop.run(
      _state(start), Steps(log, bad_at), batches(), total_steps=total,
      hooks=hooks, reporter=reporter or _reporter(Rows()),
      stop=stop or loop.Stop())


def test_order_is_evaluate_save_take_step():
  log = []
  hooks = [
      loop.Hook(lambda m: log.append(f'evaluate {m.step}'), 2, 0),
      loop.Hook(lambda m: log.append(f'save {m.step}'), 2, 0, on_entry=True)]
  step, state = _run(log, hooks=hooks)
  assert step == 4 and int(state.step) == 4
  assert log == [
      'save 0', 'take 0', 'step 0', 'take 1', 'step 1',
      'evaluate 2', 'save 2', 'take 2', 'step 2', 'take 3', 'step 3',
      'evaluate 4', 'save 4']


@pytest.mark.parametrize('step,entry,finished,stopping,due', [
    (110, False, False, False, True),
    (111, False, False, False, False),
    (117, False, False, False, True),  # also_at
    (113, False, True, False, True),
    (113, False, False, True, False),
    (110, True, False, False, False),
])
def test_periods_count_from_the_runs_first_step(
    step, entry, finished, stopping, due):
  hook = loop.Hook(lambda m: None, 10, 100, also_at=(117,))
  moment = loop.Moment(step, _state(), entry, finished, stopping)
  assert hook.due(moment) == due


def test_period_zero_waits_for_the_end():
  hook = loop.Hook(lambda m: None, 0, 0)
  assert not hook.due(loop.Moment(5, _state()))
  assert hook.due(loop.Moment(5, _state(), finished=True))


def test_rows_lag_but_are_complete_before_a_hook_runs():
  rows = Rows()
  seen = []
  hook = loop.Hook(lambda m: seen.append(len(rows.rows)), 2, 0)
  _run([], total=5, hooks=[hook], reporter=_reporter(rows))
  assert seen == [1, 2, 2]
  assert [(step, row['loss']) for step, row in rows.rows] == [
      (2, 1.5), (4, 3.5)]


class Clock:
  """A clock that stands still unless it is told how long something takes."""

  def __init__(self, monkeypatch):
    self.now = 50.0
    monkeypatch.setattr(time, 'monotonic', lambda: self.now)

  def work(self, seconds):
    self.now += seconds


def test_seconds_of_what_is_no_step_are_reported_apart(monkeypatch):
  clock, rows = Clock(monkeypatch), Rows()

  class Timed(Steps):

    def compile_train(self, state, batch):
      clock.work(30.0)

    def train(self, state, batch):
      clock.work(0.5)
      state, metrics = super().train(state, batch)
      rate = metrics_lib.StepsPerTime()
      return state, {**metrics, 'timing/steps_per_second': rate}

  def batches():
    clock.work(4.0)
    yield from range(9)

  reporter = _reporter(rows)
  reporter.add_seconds('timing/init_or_restore_seconds', 7.0)
  hook = loop.Hook(
      lambda m: clock.work(3.0), 1, 0, timing='timing/checkpoint_seconds')
  loop.run(_state(), Timed([]), batches(), total_steps=4, hooks=[hook],
           reporter=reporter, stop=loop.Stop())
  first, second = (row for _, row in rows.rows)
  del first['loss'], second['loss']
  # The hook of a row's last step comes after the row.
  assert first == {
      'timing/init_or_restore_seconds': 7.0, 'timing/train_iter_warmup': 4.0,
      'timing/compilation_seconds': 30.0, 'timing/checkpoint_seconds': 3.0,
      'timing/steps_per_second': 2.0}
  assert second == {
      'timing/checkpoint_seconds': 6.0, 'timing/steps_per_second': 2.0}


def test_a_bad_step_stops_before_anything_is_saved():
  saved = []
  hook = loop.Hook(lambda m: saved.append(m.step), 3, 0)
  with pytest.raises(FloatingPointError, match=r'step 3 .*is of step None'):
    _run([], total=9, hooks=[hook], bad_at=3)
  assert saved == []


def test_the_last_step_is_reported_and_checked_without_a_hook():
  rows = Rows()
  _run([], total=4, reporter=_reporter(rows))
  assert [step for step, _ in rows.rows] == [2, 4]
  with pytest.raises(FloatingPointError, match='step 4'):
    _run([], total=4, bad_at=4)


def test_rates_of_a_resumed_window_count_this_process_only():
  rows = Rows()
  reporter = _reporter(rows, period=4, window={
      'timing/steps_per_second': [1000.0], trainer_lib.NONFINITE: [0.0]})
  with reporter.paused():
    jax.block_until_ready(jnp.ones(3))
  time.sleep(0.05)
  reporter.push(4, {'timing/steps_per_second': metrics_lib.StepsPerTime(),
                    trainer_lib.NONFINITE: metrics_lib.Sum(0.0)}, _state())
  reporter.drain()
  assert rows.rows[0][1]['timing/steps_per_second'] < 20


def test_a_window_survives_interruption():
  whole = Rows()
  _run([], total=4, reporter=_reporter(whole, period=4))
  first = _reporter(Rows(), period=4)
  _run([], total=3, reporter=first)
  first.drain()
  window = json.loads(json.dumps(first.window()))
  second = Rows()
  _run([], total=4, start=3, reporter=_reporter(
      second, period=4, window=window))
  assert second.rows[0][1]['loss'] == whole.rows[0][1]['loss']
  assert len(second.rows) == len(whole.rows) == 1


def test_sigterm_saves_there_and_ends():
  log, saved = [], []
  hooks = [
      loop.Hook(lambda m: log.append('evaluate'), 100, 0),
      loop.Hook(lambda m: saved.append(m.step), 100, 0, on_stop=True),
      loop.Hook(lambda m: os.kill(os.getpid(), signal.SIGTERM)
                if m.step == 2 else None, 1, 0)]
  before = signal.getsignal(signal.SIGTERM)
  with loop.Stop().listening() as stop:
    step, _ = _run(log, total=50, hooks=hooks, stop=stop)
  assert (step, saved) == (2, [2])
  assert log == ['take 0', 'step 0', 'take 1', 'step 1']
  assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_in_an_evaluation_saves_once_after_it():
  log = []
  hooks = [
      loop.Hook(lambda m: (log.append('evaluate'),
                           os.kill(os.getpid(), signal.SIGTERM)), 2, 0),
      loop.Hook(lambda m: log.append(f'save {m.step}'), 2, 0, on_stop=True)]
  with loop.Stop().listening() as stop:
    step, _ = _run(log, total=50, hooks=hooks, stop=stop)
  assert step == 2
  assert log == ['take 0', 'step 0', 'take 1', 'step 1', 'evaluate', 'save 2']


def test_sigterm_between_steps_saves_at_the_next_one():
  log = []
  hooks = [loop.Hook(lambda m: log.append(f'save {m.step}'), 100, 0,
                     on_stop=True)]

  def batches():
    yield 0
    os.kill(os.getpid(), signal.SIGTERM)
    yield 1
    yield 2

  with loop.Stop().listening() as stop:
    step, _ = loop.run(
        _state(), Steps(log), batches(), total_steps=50, hooks=hooks,
        reporter=_reporter(Rows()), stop=stop)
  assert step == 2
  assert log == ['step 0', 'step 1', 'save 2']


@pytest.mark.parametrize('step', [2, 6])
def test_a_decision_to_stop_saves_at_that_step_and_ends(step):
  log, saved = [], []
  stop = loop.Stop()

  def evaluate(moment):
    stop.decided = moment.step == step

  hooks = [loop.Hook(evaluate, 2, 0),
           loop.Hook(lambda m: log.append('evaluate'), 100, 0),
           loop.Hook(lambda m: saved.append(m.step), 100, 0, on_stop=True)]
  reached, state = _run(log, total=50, hooks=hooks, stop=stop)
  assert (reached, int(state.step), saved) == (step, step, [step])
  assert 'evaluate' not in log and log[-1] == f'step {step - 1}'


def test_movement_is_the_norm_of_the_change():
  rows = Rows()
  reporter = loop.Reporter(
      rows, period=1, first_step=0,
      initial={'a': np.zeros((2, 2), np.float32), 'b': np.ones(1, np.float32)},
      window={}, model_dir='/none')
  metrics = {'loss': metrics_lib.AveragePerStep(total=1.0),
             trainer_lib.NONFINITE: metrics_lib.Sum(0.0)}
  state = loop.TrainState(
      jnp.int32(1), {'a': jnp.full((2, 2), 2.0), 'b': jnp.full(1, 4.0)}, {}, ())
  reporter.push(1, metrics, state)
  reporter.drain()
  assert rows.rows[0][1]['change_norm'] == pytest.approx(5.0)


def test_pauses_do_not_count_as_training_time():
  rows = Rows()
  reporter = _reporter(rows, period=1)
  metrics = {'timing/steps_per_second': metrics_lib.StepsPerTime(),
             trainer_lib.NONFINITE: metrics_lib.Sum(0.0)}
  with reporter.paused():
    jax.block_until_ready(jnp.ones(3))
    time.sleep(0.5)
  reporter.push(1, metrics, _state())
  reporter.drain()
  assert rows.rows[0][1]['timing/steps_per_second'] > 2.5


def test_rows_have_the_figures_of_time_that_t5x_has():
  rows = Rows()
  reporter = _reporter(rows, period=2)
  rate = metrics_lib.TimeRate
  for step, learning_rate in ((1, 0.5), (2, 0.25)):
    reporter.push(step, {
        'learning_rate': metrics_lib.AveragePerStep(total=learning_rate),
        'timing/seqs_per_second': rate(numerator=16.0),
        'timing/target_tokens_per_second': rate(numerator=64.0),
        trainer_lib.NONFINITE: metrics_lib.Sum(0.0)}, _state())
  reporter.drain()
  ((_, row),) = rows.rows
  assert row['learning_rate'] == 0.375
  assert row['learning_rate/current'] == 0.25
  assert row['timing/seqs'] == pytest.approx(32.0)
  assert 0 < row['timing/seconds'] <= row['timing/uptime']
  for name in ('seqs', 'target_tokens'):
    per_second = row[f'timing/{name}_per_second']
    assert row[f'timing/{name}_per_second_per_core'] == per_second / 8


def _console(terminal):
  return rich.console.Console(
      file=io.StringIO(), force_terminal=terminal, width=120,
      highlight=False, soft_wrap=True)


def test_plain_lines_without_a_terminal():
  console = _console(False)
  terminal = metric_writers.Terminal(100, 400, console)
  terminal.write(200, {'loss': 1.25, 'timing/steps_per_second': 2.0,
                       'change_norm': 3.5, 'not shown': 9.0})
  assert console.file.getvalue() == (
      'step 200 of 400  loss 1.25  steps/s 2  moved 3.5  left 0:01:40\n')


def test_a_bar_on_a_terminal():
  console = _console(True)
  terminal = metric_writers.Terminal(100, 400, console)
  terminal.write(250, {'loss': 1.25, 'change_norm': 3.5})
  terminal.say('a line')
  terminal.close()
  text = console.file.getvalue()
  assert '250 / 400' in text and 'moved 3.5' in text and 'a line' in text


def test_nothing_is_drawn_before_there_are_figures():
  console = _console(True)
  terminal = metric_writers.Terminal(100, 400, console)
  terminal.close()
  assert console.file.getvalue() == ''


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n'
                  '{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
  writer = metric_writers.JsonlWriter(str(path), resume_step=2)
  writer.write(3, {'loss': 1.5})
  writer.close()
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row['loss'] for row in rows] == [3.0, 2.0, 1.5]


def test_tensorboard_reads_the_events(tmp_path):
  from tensorboard.backend.event_processing import event_accumulator
  writer = metric_writers.TensorBoardWriter(str(tmp_path))
  writer.write(1, {'loss': 3.0})
  writer.write(2, {'loss': 2.0})
  writer.close()
  resumed = metric_writers.TensorBoardWriter(str(tmp_path), resume_step=1)
  resumed.write(2, {'loss': 2.5})
  resumed.close()
  events = event_accumulator.EventAccumulator(str(tmp_path))
  events.Reload()
  assert [(e.step, e.value) for e in events.Scalars('loss')] == [
      (1, 3.0), (2, 2.5)]


def test_silent_folders_write_nothing(tmp_path):
  folder = metric_writers.RunFolder(
      str(tmp_path / 'run'), metric_writers.Terminal(0, 0, _console(False)),
      silent=True)
  folder.writers('train').write(1, {'loss': 1.0})
  folder.write_text('model-info.txt', 'text')
  folder.say('nothing')
  assert not (tmp_path / 'run').exists()
