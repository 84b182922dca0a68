"""A run from exported batches is the run that tokenises them itself."""

import json

import numpy as np
import pytest
from t5x import export_batches
from t5x import program
from t5x import train

pytestmark = pytest.mark.slow

RUN = ['--gin_file=gin/demo/source.gin', '--gin.TRAIN_STEPS_RELATIVE=3',
       '--gin.BATCH_SIZE=8', '--gin.train.infer_eval_dataset_cfg=None',
       '--gin.train.stats_period=1']
READY = """
from __gin__ import dynamic_registration
import __main__ as train_script
from t5x import ready_batches
train_script.train.get_dataset_fn = @ready_batches.get_dataset
ready_batches.get_dataset.directory = '{folder}'
"""


def _export(folder, *arguments):
  program.run_command(export_batches.export_batches, [
      *RUN, '--gin_file=t5x/configs/runs/export_batches.gin',
      '--gin.MODEL_DIR=/nowhere', f'--gin.BATCHES_DIR={folder}', *arguments])


def _run(folder, *arguments):
  _, state = program.run_command(
      train.train, [*RUN, f'--gin.MODEL_DIR={folder}', *arguments])
  text = (folder / 'train' / 'metrics.jsonl').read_text()
  rows = [{name: value for name, value in json.loads(line).items()
           if not name.startswith('timing')} for line in text.splitlines()]
  return rows, {name: np.asarray(x) for name, x in state.trainable.items()}


def test_training_from_ready_batches_is_the_same_run(tmp_path):
  _export(tmp_path / 'batches', '--gin.NUM_BATCHES=3')
  file = tmp_path / 'ready.gin'
  file.write_text(READY.format(folder=tmp_path / 'batches'))
  wanted_rows, wanted = _run(tmp_path / 'own')
  rows, found = _run(tmp_path / 'ready', f'--gin_file={file}')
  assert rows == wanted_rows and len(rows) == 3
  for name, value in wanted.items():
    np.testing.assert_array_equal(found[name], value)
  with pytest.raises(ValueError, match='8 rows, but BATCH_SIZE is 16'):
    _run(tmp_path / 'other', f'--gin_file={file}', '--gin.BATCH_SIZE=16')


def test_nothing_is_written_without_a_seed_or_twice(tmp_path):
  with pytest.raises(ValueError, match='RANDOM_SEED is None'):
    _export(tmp_path / 'a', '--gin.NUM_BATCHES=1', '--gin.RANDOM_SEED=None')
  assert not list(tmp_path.iterdir())
  _export(tmp_path / 'a', '--gin.NUM_BATCHES=1', '--dry_run')
  assert not list(tmp_path.iterdir())
  _export(tmp_path / 'a', '--gin.NUM_BATCHES=1')
  with pytest.raises(ValueError, match='is there already'):
    _export(tmp_path / 'a', '--gin.NUM_BATCHES=1')
