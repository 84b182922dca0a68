"""Two processes, as on a cluster, are one run: trained, stopped, evaluated.

Two processes of one device each do what one process of two devices does, bit
for bit: data, random numbers and programs are the same, and where the devices
exchange something they add two numbers, whose order does not matter.
"""

import functools
import glob
import json
import os
import pathlib
import signal
import socket
import time

import numpy as np
from prompt_tuning.demo import files
from prompt_tuning.demo import tasks
import pytest
from t5x import checkpoints

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
FIRST = int(files.checkpoint().rsplit('_', 1)[1])
STEPS = 24
TASK = 'demo_film_sentiment'
TRAIN = ['--gin_file=gin/demo/source.gin',
         f'--gin.TRAIN_STEPS_RELATIVE={STEPS}', '--gin.EVAL_PERIOD=8',
         '--gin.BATCH_SIZE=8', '--gin.EVALUATOR_NUM_EXAMPLES=20',
         '--gin.infer_eval/utils.DatasetConfig.batch_size=20',
         '--gin.train.stats_period=1',
         '--gin.utils.SaveCheckpointConfig.period=8']
READ = [f'--gin.CHECKPOINT_PATH={files.checkpoint()}',
        f'--gin.MIXTURE_OR_TASK_NAME={TASK}',
        '--gin.MIXTURE_OR_TASK_MODULE=prompt_tuning.demo.tasks',
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}",
        "--gin.utils.DatasetConfig.split='validation'",
        '--gin.utils.DatasetConfig.batch_size=64']


def _port():
  """A free port."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


class Cluster:
  """A program in some processes, of two devices altogether."""

  def __init__(self, programs, program, *arguments, count=2, only=None):
    """Starts it; `only` has further environment for one process by index."""
    devices = f' --xla_force_host_platform_device_count={2 // count}'
    joined = [] if count == 1 else [
        f'--coordinator_address=localhost:{_port()}',
        f'--process_count={count}']
    self.processes = [
        programs.start(
            '-m', f't5x.{program}', *arguments, *joined,
            *([f'--process_index={index}'] if joined else []),
            XLA_FLAGS=os.environ['XLA_FLAGS'] + devices,
            **(only or {}).get(index, {}))
        for index in range(count)]

  def finish(self, code=0):
    """Waits for all; returns what they printed."""
    codes = {p.wait(timeout=300) for p in self.processes}
    outputs = [p.output for p in self.processes]
    assert codes == {code}, outputs
    return outputs

  def fail(self, seconds=30):
    """Waits for all to fail, soon after the first one does."""
    while all(process.poll() is None for process in self.processes):
      time.sleep(0.05)
    deadline = time.monotonic() + seconds
    for process in self.processes:
      process.wait(timeout=max(deadline - time.monotonic(), 0.1))
    return [process.output for process in self.processes]

  def wait_for_steps(self, model_dir, last, count=2):
    """Waits until so many steps after the last have been reported."""
    deadline = time.monotonic() + 200
    while _steps(model_dir) < last + count:
      assert time.monotonic() < deadline
      for process in self.processes:
        assert process.poll() is None, process.output
      time.sleep(0.002)


@pytest.fixture(scope='module')
def train(programs):
  """Starts a run."""
  return lambda model_dir, *extra, **options: Cluster(
      programs, 'train', *TRAIN, f'--gin.MODEL_DIR={model_dir}', *extra,
      **options)


def _steps(model_dir):
  """How many steps a run has reported."""
  path = model_dir / 'train' / 'metrics.jsonl'
  return len(path.read_text().splitlines()) if path.exists() else 0


def _rows(path):
  return [{k: v for k, v in json.loads(line).items()
           if not k.startswith('timing')}
          for line in path.read_text().splitlines()]


def _assert_same_run(found, expected, steps=STEPS):
  """Everything that is saved and reported is equal, bit for bit."""
  ours, theirs = (checkpoints.open_checkpoint(
      f'{folder}/checkpoint_{FIRST + steps}') for folder in (found, expected))
  assert ours.keys() == theirs.keys()
  for name, array in theirs.items():
    np.testing.assert_array_equal(ours[name].get(), array.get(), err_msg=name)
  for name in ('train/metrics.jsonl', f'inference_eval/{TASK}-metrics.jsonl'):
    assert _rows(found / name) == _rows(expected / name), name


@pytest.fixture(scope='module')
def alone(train, tmp_path_factory):
  """The run in one process of two devices."""
  folder = tmp_path_factory.mktemp('alone')
  train(folder, count=1).finish()
  return folder


def test_two_processes_train_as_one_and_the_first_one_speaks(
    train, alone, tmp_path):
  first, second = train(tmp_path).finish()
  _assert_same_run(tmp_path, alone)
  assert 'accuracy' in first and 'accuracy' not in second
  assert [row['step'] - FIRST
          for row in _rows(tmp_path / 'train/metrics.jsonl')] == list(
              range(1, STEPS + 1))
  assert checkpoints.all_steps(str(tmp_path)) == [FIRST + STEPS]


def test_stopped_and_killed_in_every_way_it_equals_unbroken(
    train, alone, tmp_path):
  # As a scheduler does it: every process is told, or only one is.
  for told in ((0, 1), (1,)):
    last = _steps(tmp_path)
    cluster = train(tmp_path)
    cluster.wait_for_steps(tmp_path, last)
    for index in told:
      cluster.processes[index].send_signal(signal.SIGTERM)
    cluster.finish(code=143)
    stopped = checkpoints.latest_step(str(tmp_path))
    assert FIRST + last + 2 <= stopped < FIRST + STEPS
  # As hardware does it. The other process ends on its own, soon.
  for killed in (1, 0):
    last = _steps(tmp_path)
    cluster = train(tmp_path)
    cluster.wait_for_steps(tmp_path, last)
    cluster.processes[killed].kill()
    cluster.fail()
    assert all(process.returncode for process in cluster.processes)
  # The number of processes may change.
  train(tmp_path, count=1).finish()
  _assert_same_run(tmp_path, alone)


def test_a_model_is_cut_over_processes(train, tmp_path):
  cut = [MODEL_CUT, '--gin.TRAIN_STEPS_RELATIVE=8']
  for count in (1, 2):
    train(tmp_path / str(count), *cut, count=count).finish()
  _assert_same_run(tmp_path / '2', tmp_path / '1', steps=8)
  info = (tmp_path / '2' / 'model-info.txt').read_text()
  assert "'model'" in info


@pytest.fixture(scope='module')
def prompt(tmp_path_factory):
  path = tmp_path_factory.mktemp('prompt') / 'encoder.prompt.prompt.prompt'
  with path.open('wb') as file:
    np.save(file, np.random.default_rng(0).normal(
        size=(10, 128)).astype(np.float32))
  return path


@pytest.fixture(scope='module')
def read(programs, prompt):
  """Evaluates or infers."""
  return functools.partial(_read, programs, prompt)


def _read(programs, prompt, program, folder, count, *extra):
  name = {'eval': 'EVAL', 'infer': 'INFER'}[program]
  return Cluster(
      programs, program, '--gin_file=models/demo_prompt.gin',
      '--gin_file=models/decoding/greedy.gin',
      f'--gin_file=runs/prompt_{program}.gin', f'--gin.PROMPT_FILE={prompt}',
      f'--gin.{name}_OUTPUT_DIR={folder}', *READ, *extra, count=count).finish()


MODEL_CUT = '--gin.PjitPartitioner.num_partitions=2'


def test_two_processes_evaluate_as_one(read, tmp_path):
  read('eval', tmp_path / '1', 1)
  read('eval', tmp_path / '2', 2, MODEL_CUT)
  one, two = (_rows(tmp_path / name / f'inference_eval/{TASK}-metrics.jsonl')
              for name in '12')
  assert one == two and len(one) == 1


@pytest.mark.parametrize('mode,extra', [
    ('predict', [MODEL_CUT]), ('score', [])])
def test_two_processes_infer_as_one(read, tmp_path, mode, extra):
  found = []
  for count in (1, 2):
    folder = tmp_path / str(count)
    read('infer', folder, count, f"--gin.infer.mode='{mode}'", *extra)
    # Shards may be named and cut in any way.
    found.append([
        json.loads(line)
        for path in sorted(glob.glob(
            f'{folder}/**/*.jsonl-[0-9]*-of-*[0-9]', recursive=True))
        for line in pathlib.Path(path).read_text().splitlines()])
  assert found[0] == found[1]
  assert len(found[0]) == tasks.EVALUATION_SIZES['validation']


FAILURES = {
    # The first process alone writes numpy files.
    'a save': (0, 2, f'numpy_checkpoints/checkpoint_{FIRST + 8} could not be'),
    # The second process alone cannot import the tasks.
    'an import': (1, 2, 'own_tasks cannot be imported'),
}


@pytest.mark.parametrize('what', FAILURES)
def test_one_process_fails_and_all_say_why(train, tmp_path, what):
  index, code, said = FAILURES[what]
  folder = tmp_path / 'tasks'
  folder.mkdir()
  (folder / 'own_tasks.py').write_text(
      'import prompt_tuning.demo.tasks\n')
  only = {i: {'PYTHONPATH': os.pathsep.join([str(ROOT), str(folder)])}
          for i in (0, 1)}
  run = tmp_path / 'run'
  if what == 'a save':
    blocked = run / 'numpy_checkpoints' / f'checkpoint_{FIRST + 8}'
    blocked.parent.mkdir(parents=True)
    blocked.write_text('not a folder')
  else:
    del only[index]
  cluster = train(
      run, '--gin.MIXTURE_OR_TASK_MODULE=own_tasks', only=only)
  outputs = cluster.fail()
  assert [p.returncode for p in cluster.processes] == [code, code], outputs
  for output in outputs:
    assert f'process {index} of 2: ' in output and said in output
