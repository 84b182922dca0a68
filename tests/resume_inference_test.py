"""`t5x.infer` killed with SIGKILL, in one process and in two, and run again."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
from prompt_tuning.demo import files
from prompt_tuning.demo import tasks
import pytest
from t5x import infer
from t5x import program

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
TASK = tasks.TARGETS[0]
NAME = f'{TASK.name}-predict.jsonl-00000-of-00001'
TMP = f'tmp-{TASK.name}-00000-of-00001'
CHUNKS = 4

# Sends this process SIGKILL when it opens a file of that name.
KILL = """
import os, signal, sys
def hook(event, args):
  if event == 'open' and str(args[0]).endswith(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from t5x import infer, program
program.run_command(infer.infer, sys.argv[2:])
"""


@pytest.fixture(scope='module')
def prompt(tmp_path_factory):
  path = tmp_path_factory.mktemp('prompt') / 'prompt.npy'
  np.save(path, np.random.default_rng(0).normal(
      size=(10, 128)).astype(np.float32))
  return path


def _arguments(prompt, output):
  """100 rows, sampled, so that random keys count; three whole chunks of 32."""
  return [
      '--gin_file=models/demo_prompt.gin',
      '--gin_file=models/decoding/nucleus_sampling.gin',
      '--gin_file=runs/prompt_infer.gin', f'--gin.PROMPT_FILE={prompt}',
      f'--gin.CHECKPOINT_PATH={files.checkpoint()}',
      f'--gin.MIXTURE_OR_TASK_NAME={TASK.name}',
      '--gin.MIXTURE_OR_TASK_MODULE=prompt_tuning.demo.tasks',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}",
      "--gin.utils.DatasetConfig.split='validation'",
      '--gin.utils.DatasetConfig.batch_size=16',
      '--gin.infer.checkpoint_period=2',
      '--gin.decoding.temperature_sample.temperature=3.0',
      f'--gin.INFER_OUTPUT_DIR={output}']


def _infer(prompt, output, *extra):
  program.run_command(infer.infer, [*_arguments(prompt, output), *extra])
  return (output / NAME).read_bytes()


def _killed(prompt, output, name):
  """Runs until a file of that name is opened."""
  process = subprocess.run(
      [sys.executable, '-c', KILL, name, *_arguments(prompt, output)],
      cwd=ROOT, timeout=200, check=False)
  assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope='module')
def unbroken(prompt, tmp_path_factory):
  return _infer(prompt, tmp_path_factory.mktemp('unbroken'))


@pytest.fixture(scope='module')
def interrupted(prompt, tmp_path_factory):
  """A folder with two chunks of four."""
  folder = tmp_path_factory.mktemp('interrupted')
  _killed(prompt, folder, 'chunk00002.writing')
  return folder


def test_a_killed_run_goes_on_to_the_same_bytes(
    prompt, unbroken, interrupted, tmp_path, capsys):
  folder = tmp_path / 'copy'
  shutil.copytree(interrupted, folder)
  assert sorted(p.name[len(NAME):] for p in (folder / TMP).iterdir()) == [
      f'-chunk{i:05}{end}' for i in range(2) for end in ('', '.COMPLETED')]
  assert _infer(prompt, folder) == unbroken
  assert 'after 2 chunks that were there' in capsys.readouterr().out
  assert not (folder / TMP).exists()
  written = (folder / NAME).stat().st_mtime_ns
  assert _infer(prompt, folder) == unbroken
  assert 'finished before' in capsys.readouterr().out
  assert (folder / NAME).stat().st_mtime_ns == written
  # Sampling at work: chunks and batches do not repeat each other.
  assert len(set(unbroken.splitlines())) > 90


def test_a_run_killed_in_the_merge_goes_on_to_the_same_bytes(
    prompt, unbroken, tmp_path, capsys):
  _killed(prompt, tmp_path, f'{NAME}.merging')
  assert not (tmp_path / NAME).exists()
  assert _infer(prompt, tmp_path) == unbroken
  assert '0 results after 4 chunks' in capsys.readouterr().out


@pytest.mark.parametrize('what,argument', [
    ('batch_size', '--gin.utils.DatasetConfig.batch_size=32'),
    ('checkpoint_period', '--gin.infer.checkpoint_period=4'),
    ('parameters', '--gin.PROMPT_FILE={other}'),
    ('program', '--gin.decoding.temperature_sample.temperature=2.0'),
    ('write_fn', '--gin.write_inferences_to_file.output_ids=True'),
    ('task_feature_lengths',
     "--gin.TASK_FEATURE_LENGTHS={{'inputs': 24, 'targets': 4}}"),
    ('checkpoint', '--gin.CHECKPOINT_PATH={copy}')])
def test_rows_of_another_configuration_are_not_mixed_in(
    prompt, interrupted, tmp_path, what, argument):
  other, copy = tmp_path / 'other.npy', tmp_path / 'checkpoint_3500'
  np.save(other, np.full((10, 128), 0.5, np.float32))
  shutil.copytree(files.checkpoint(), copy)
  before = sorted(p.name for p in (interrupted / TMP).iterdir())
  with pytest.raises(ValueError, match=f'was begun with another {what} '):
    _infer(prompt, interrupted, argument.format(other=other, copy=copy))
  assert sorted(p.name for p in (interrupted / TMP).iterdir()) == before
  assert not (interrupted / NAME).exists()


def _two_processes(prompt, output, *extra):
  """Exit codes and outputs of a run in two processes of one device each."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  processes = [subprocess.Popen(
      [sys.executable, '-m', 't5x.infer', '--multiprocess_gpu',
       f'--coordinator_address=localhost:{port}', '--process_count=2',
       f'--process_index={index}', *_arguments(prompt, output), *extra],
      cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      env=os.environ | {'XLA_FLAGS': ''}) for index in range(2)]
  outputs = [p.communicate(timeout=200)[0] for p in processes]
  return [p.returncode for p in processes], outputs


def test_two_processes_write_one_output(prompt, unbroken, tmp_path):
  codes, outputs = _two_processes(prompt, tmp_path)
  assert codes == [0, 0], outputs
  assert (tmp_path / NAME).read_bytes() == unbroken
  assert '100 results' in outputs[0] and 'results' not in outputs[1]


def test_a_failure_of_one_process_ends_both(prompt, tmp_path):
  # Only the first writes, and a folder is in its way.
  (tmp_path / NAME).mkdir()
  codes, outputs = _two_processes(prompt, tmp_path)
  assert codes == [2, 2]
  for output in outputs:
    assert f'{NAME} could not be written' in output
