import logging

import pytest
from t5x import actions
from t5x import trainer

NAN = float('nan')


def _stops_at(action, values):
  """The evaluation at which an action first wants to stop; None for never."""
  for i, value in enumerate(values):
    if action.run(None, {'task': {'loss': value, 'accuracy': -value}}):
      return i
  return None


@pytest.mark.parametrize('settings,values,stop', [
    ({}, [3, 2, 2, 2, 2, 2], 4),
    ({}, [3, 2, 2, 2, 1, 1, 1, 1], 7),
    ({}, [5, 4, 3, 2, 1], None),
    ({'patience': 1}, [3, 3], 1),
    ({'patience': 2}, [1, 2, 3], 2),
    # Smaller gains than the tolerance are none; they are not added up.
    ({'patience': 2, 'atol': 0.5}, [3, 2.6, 2.4, 2.3, 2.2], 4),
    ({'patience': 2, 'rtol': 0.1}, [10, 9.5, 9.2], 2),
    ({'patience': 2, 'rtol': 0.1}, [1, 0.5, 0.2], None),
    ({'mode': 'max', 'patience': 2}, [1, 2, 3], None),
    ({'mode': 'max', 'patience': 2}, [3, 2, 1], 2),
    ({'mode': 'max', 'metric': ('task', 'accuracy')}, [5, 4, 3, 2], None),
    ({'patience': 2}, [3, NAN, NAN], 2),
])
def test_early_stopping(settings, values, stop):
  settings = {'metric': ('task', 'loss'), 'mode': 'min'} | settings
  assert _stops_at(actions.EarlyStoppingAction(**settings), values) == stop


@pytest.mark.parametrize('settings,match', [
    ({'mode': 'least'}, 'expected min or max'), ({'patience': 0}, '1 or more')])
def test_early_stopping_refuses(settings, match):
  settings = {'metric': ('task', 'loss'), 'mode': 'min'} | settings
  with pytest.raises(ValueError, match=match):
    actions.EarlyStoppingAction(**settings)


@pytest.mark.parametrize('values,stop', [
    ([1, 2, NAN], 2), ([float('inf')], 0), ([0, 1, -1], None)])
def test_terminate_on_nan(values, stop):
  assert _stops_at(actions.TerminateOnNanAction('task'), values) == stop


@pytest.mark.parametrize('metrics', [
    {}, {'other': {'loss': NAN}}, {'task': {'other': NAN}},
    {'task': {'loss': 'a text'}}])
def test_a_metric_that_is_not_there_warns_and_stops_nothing(metrics, caplog):
  with caplog.at_level(logging.WARNING):
    assert not actions.TerminateOnNanAction('task').run(None, metrics)
  assert "no number 'loss' of 'task'" in caplog.text


def test_configurations_spell_them_trainer():
  for name in ('ActionMode', 'BaseAction', 'EarlyStoppingAction',
               'TerminateOnNanAction'):
    assert getattr(trainer, name) is getattr(actions, name)


class Recorder(actions.BaseAction):
  """Keeps what it sees."""

  def __init__(self, answer=False):
    self.answer, self.seen = answer, []

  def run(self, train_state, metrics_by_task):
    self.seen.append((train_state, metrics_by_task))
    return self.answer


def test_all_actions_of_a_mode_see_the_metrics_and_no_others():
  first, second, other = Recorder(True), Recorder(), Recorder(True)
  found = actions.require_modes(
      {'TRAIN_EVAL': [first, second], 'TRAIN': [other]})
  metrics = {'task': {'loss': 1.0}}
  mode = actions.ActionMode
  assert actions.run_actions(mode.TRAIN_EVAL, found, 'state', metrics)
  assert not actions.run_actions(mode.INFER_EVAL, found, 'state', metrics)
  assert first.seen == second.seen == [('state', metrics)]
  assert not other.seen


@pytest.mark.parametrize('given,match', [
    ({'EVAL': []}, "'EVAL'; expected one of TRAIN, TRAIN_EVAL, INFER_EVAL"),
    ({'TRAIN': [actions.TerminateOnNanAction]}, 'brackets')])
def test_wrong_actions_are_refused(given, match):
  with pytest.raises(ValueError, match=match):
    actions.require_modes(given)
