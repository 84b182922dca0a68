"""Two processes, as on a cluster: they train, save, stop and resume as one."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
from prompt_tuning.demo import files
import pytest
from t5x import checkpoints

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
FIRST = int(files.checkpoint().rsplit('_', 1)[1])
STEPS = 40


class Cluster:
  """A run in two processes of one device each."""

  def __init__(self, model_dir):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    self.processes = [
        subprocess.Popen(
            [sys.executable, '-m', 't5x.train', '--multiprocess_gpu',
             f'--coordinator_address=localhost:{port}', '--process_count=2',
             f'--process_index={index}', '--gin_file=gin/demo/source.gin',
             f'--gin.MODEL_DIR={model_dir}',
             f'--gin.TRAIN_STEPS_RELATIVE={STEPS}', '--gin.EVAL_PERIOD=20',
             '--gin.EVALUATOR_NUM_EXAMPLES=20', '--gin.train.stats_period=1',
             '--gin.utils.SaveCheckpointConfig.period=20'],
            cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {'XLA_FLAGS': ''})
        for index in range(2)]

  def finish(self):
    """Waits for both; returns what they printed."""
    outputs = [p.communicate(timeout=200)[0] for p in self.processes]
    assert [p.returncode for p in self.processes] == [0, 0], outputs
    return outputs


def _last_prompt(model_dir):
  folder = model_dir / 'numpy_checkpoints' / f'checkpoint_{FIRST + STEPS}'
  return np.load(folder / 'encoder.prompt.prompt.prompt')


def _rows(model_dir):
  text = (model_dir / 'train' / 'metrics.jsonl').read_text()
  return [{k: v for k, v in json.loads(line).items()
           if not k.startswith('timing')} for line in text.splitlines()]


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  folder = tmp_path_factory.mktemp('unbroken')
  outputs = Cluster(folder).finish()
  return folder, outputs


def test_only_the_first_process_speaks_and_writes(unbroken):
  folder, (first, second) = unbroken
  assert 'accuracy' in first and 'accuracy' not in second
  assert [row['step'] - FIRST for row in _rows(folder)] == list(
      range(1, STEPS + 1))
  assert checkpoints.all_steps(str(folder)) == [FIRST + STEPS]


def test_stopped_and_resumed_equals_unbroken(unbroken, tmp_path):
  folder, _ = unbroken
  cluster = Cluster(tmp_path)
  metrics = tmp_path / 'train' / 'metrics.jsonl'
  deadline = time.monotonic() + 150
  while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.002)
  # As a scheduler does it: every process is told.
  for process in cluster.processes:
    process.send_signal(signal.SIGTERM)
  cluster.finish()
  stopped = checkpoints.latest_step(str(tmp_path))
  assert FIRST < stopped < FIRST + STEPS
  Cluster(tmp_path).finish()
  np.testing.assert_array_equal(_last_prompt(tmp_path), _last_prompt(folder))
  assert _rows(tmp_path) == _rows(folder)
