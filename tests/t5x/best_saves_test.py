import json

import jax.numpy as jnp
import pytest
from t5x import best_saves
from t5x import checkpoint_utils
from t5x import checkpoints
from t5x import train_state

RECORD = checkpoints.RunRecord(first_step=0, seed=0)
LOSSES = {1: 5.0, 2: 1.0, 3: 4.0, 4: 2.0, 5: 3.0}


def state(step):
  return train_state.TrainState(
      jnp.int32(step), {'a': jnp.ones((2,), jnp.float32)}, {}, ())


def run(folder, *, file='train/metrics.jsonl', metric='loss', rows=LOSSES,
        pinned=None, steps=range(1, 6), **options):
  """Saves after each row, as a run does; the steps that are left."""
  config = checkpoints.SaveCheckpointConfig(
      keep=options.pop('keep', 2), dtype=None,
      checkpointer_cls=lambda directory, **more: (
          checkpoints.SaveBestCheckpointer(directory, **more, **options)))
  saver = checkpoints.make_checkpointer(config, str(folder))
  path = folder / file
  path.parent.mkdir(parents=True, exist_ok=True)
  for step in steps:
    if step in rows:
      with path.open('a') as out:
        out.write(json.dumps({'step': step, metric: rows[step]}) + '\n')
    saver.save(state(step), RECORD)
    if step == pinned:
      checkpoint_utils.pin_checkpoint(folder / f'checkpoint_{step}')
  return checkpoints.all_steps(str(folder))


@pytest.mark.parametrize('options,left', [
    ({'metric_mode': 'min'}, [2, 4, 5]),
    ({'metric_mode': 'max'}, [1, 3, 5]),
    ({'metric_mode': 'min', 'keep': 1}, [2, 5]),
    ({'metric_mode': 'min', 'keep': None}, [1, 2, 3, 4, 5]),
    ({'metric_mode': 'min', 'pinned': 1}, [1, 2, 4, 5]),
    ({'metric_mode': 'min', 'keep': 1, 'force_keep_period': 3}, [2, 3, 5]),
    # A step without the metric stays, or goes.
    ({'metric_mode': 'min', 'rows': {2: 1.0, 3: 4.0, 4: 2.0}}, [1, 2, 4, 5]),
    ({'metric_mode': 'min', 'rows': {2: 1.0, 3: 4.0, 4: 2.0},
      'keep_checkpoints_without_metrics': False}, [2, 4, 5]),
    # A loss that is no number is no metric.
    ({'metric_mode': 'min', 'rows': LOSSES | {2: float('nan')},
      'keep_checkpoints_without_metrics': False}, [4, 5]),
])
def test_the_best_and_the_last_stay(tmp_path, options, left):
  assert run(tmp_path, metric_name_to_monitor='train/loss', **options) == left


@pytest.mark.parametrize('name,file,metric', [
    ('training_eval/task/loss', 'training_eval/task/metrics.jsonl', 'loss'),
    ('inference_eval/task/f1', 'inference_eval/task-metrics.jsonl', 'f1'),
    ('train/timing/seconds', 'train/metrics.jsonl', 'timing/seconds'),
])
def test_metrics_are_found_where_a_run_writes_them(
    tmp_path, name, file, metric):
  assert run(tmp_path, metric_name_to_monitor=name, metric_mode='min',
             file=file, metric=metric) == [2, 4, 5]


def test_without_the_metric_nothing_is_removed(tmp_path, caplog):
  assert run(tmp_path, metric_name_to_monitor='train/f1') == [1, 2, 3, 4, 5]
  assert 'train/f1' in caplog.text


def test_a_damaged_row_is_no_row(tmp_path):
  (tmp_path / 'train').mkdir()
  (tmp_path / 'train' / 'metrics.jsonl').write_text(
      '{"step": 1, "loss": 2}\n[]\n{"step": "2", "loss": 1}\n{"step": 3, "lo')
  assert best_saves.metric_by_step(str(tmp_path), 'train/loss') == {1: 2}


@pytest.mark.parametrize('options', [
    {'metric_mode': 'mean'}, {'metric_name_to_monitor': 'loss'}])
def test_unknown_settings_are_refused(tmp_path, options):
  with pytest.raises(ValueError, match='SaveBestCheckpointer'):
    checkpoints.SaveBestCheckpointer(str(tmp_path), **options)
