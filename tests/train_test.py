"""The command line as users run it: learn, resume, stop, refuse."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from prompt_tuning.demo import files
import pytest
from t5x import checkpoints
from t5x import program
from t5x import train
from t5x import train_state

ROOT = pathlib.Path(__file__).parents[1]
PROMPT = 'encoder.prompt.prompt.prompt'
FIRST = int(files.checkpoint().rsplit('_', 1)[1])
TASK = 'demo_film_sentiment'
EVALUATED = f'inference_eval/{TASK}-metrics.jsonl'

# Dropout stays at 0.1, so that random keys are part of what is resumed.
RUN = [
    '--gin_file=models/demo_prompt.gin',
    '--gin_file=prompts/from_sampled_vocab.gin',
    '--gin_file=runs/demo_finetune.gin',
    f'--gin.MIXTURE_OR_TASK_NAME={TASK}',
    '--gin.TRAIN_STEPS_RELATIVE=9',
    '--gin.EVAL_PERIOD=6',
    '--gin.BATCH_SIZE=8',
    '--gin.RANDOM_SEED=3',
    '--gin.EVALUATOR_NUM_EXAMPLES=40',
    '--gin.infer_eval/utils.DatasetConfig.batch_size=40',
    '--gin.utils.SaveCheckpointConfig.period=3',
    '--gin.train.stats_period=1',
]


def run(model_dir, *extra, arguments=None):
  """Trains in this process."""
  return program.run_command(train.train, [
      *(arguments or RUN), f'--gin.MODEL_DIR={model_dir}', *extra])


@pytest.fixture(scope='module')
def start(programs):
  """Trains in a process of its own."""
  return lambda model_dir, *extra: programs.start(
      '-m', 't5x.train', *RUN, f'--gin.MODEL_DIR={model_dir}', *extra)


def rows(model_dir, name='train/metrics.jsonl'):
  """Rows of a metrics file without the clock's figures."""
  text = (pathlib.Path(model_dir) / name).read_text()
  return [{k: v for k, v in json.loads(line).items()
           if not k.startswith('timing')} for line in text.splitlines()]


def arrays(model_dir, step):
  """Everything that a save holds."""
  folder = checkpoints.get_checkpoint_dir(str(model_dir), step)
  return {name: array.get()
          for name, array in checkpoints.open_checkpoint(folder).items()}


def prompt(model_dir, step):
  """The numpy file of a step."""
  return np.load(pathlib.Path(model_dir) / 'numpy_checkpoints'
                 / f'checkpoint_{step}' / PROMPT)


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  """A run that was never stopped, in an interpreter of its own."""
  folder = tmp_path_factory.mktemp('unbroken')
  subprocess.run(
      [sys.executable, '-m', 't5x.train', *RUN, f'--gin.MODEL_DIR={folder}'],
      cwd=ROOT, check=True, timeout=300)
  return folder


def assert_same_run(first, second):
  """Saves, metrics and evaluations are equal, bit for bit."""
  last = FIRST + 9
  expected, found = arrays(first, last), arrays(second, last)
  assert expected.keys() == found.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(value, found[name], err_msg=name)
  assert rows(first) == rows(second)
  assert rows(first, EVALUATED) == rows(second, EVALUATED)
  for step in (0, 3, 6, 9):
    np.testing.assert_array_equal(
        prompt(first, FIRST + step), prompt(second, FIRST + step))


@pytest.mark.slow
def test_a_run_writes_what_t5x_writes(unbroken):
  for name in ('config.gin', 'model-info.txt', 'train/metrics.jsonl',
               EVALUATED):
    assert (unbroken / name).stat().st_size > 0, name
  assert list((unbroken / 'train').glob('events.out.tfevents*'))
  assert 'MODEL_DIR' in (unbroken / 'config.gin').read_text()
  info = (unbroken / 'model-info.txt').read_text()
  assert re.search(r'Variable encoder/prompt/prompt/prompt +size 1280 ', info)
  # keep = 1 leaves one save; the numpy files of all of them stay.
  assert checkpoints.all_steps(str(unbroken)) == [FIRST + 9]
  numpy_steps = sorted(
      path.name for path in (unbroken / 'numpy_checkpoints').iterdir())
  assert numpy_steps == [f'checkpoint_{FIRST + s}' for s in (0, 3, 6, 9)]
  assert [row['step'] - FIRST for row in rows(unbroken)] == list(range(1, 10))
  evaluated = rows(unbroken, EVALUATED)
  assert [row['step'] - FIRST for row in evaluated] == [0, 6, 9]


@pytest.mark.slow
def test_prompt_saves_are_kilobytes(unbroken):
  save = unbroken / f'checkpoint_{FIRST + 9}'
  size = sum(p.stat().st_size for p in save.rglob('*') if p.is_file())
  assert size < 60_000  # The model has 1.4 million parameters.


def _last_row(folder, name):
  """The step of a metrics file's last whole row, counted from the first."""
  lines = [line for line in (folder / name).read_text().splitlines()
           if line.endswith('}')] if (folder / name).exists() else []
  return json.loads(lines[-1])['step'] - FIRST if lines else None


# When a run is interrupted, in the order of a run.
MOMENTS = {
    'loading': lambda run: (run / 'model-info.txt').exists(),
    'evaluating first': lambda run: (run / 'inference_eval').exists(),
    'saving first': lambda run: _last_row(run, EVALUATED) == 0,
    'compiling': lambda run: (run / f'checkpoint_{FIRST}').exists(),
    'stepping': lambda run: _last_row(run, 'train/metrics.jsonl') == 2,
    'saving': lambda run: (run / f'checkpoint_{FIRST + 3}.tmp-0').exists(),
    'evaluating': lambda run: _last_row(run, 'train/metrics.jsonl') == 6,
    'between evaluation and save': lambda run: _last_row(run, EVALUATED) == 6,
    'ending': lambda run: (run / f'checkpoint_{FIRST + 9}.tmp-0').exists(),
}


def interrupt(process, folder, moment, *signals):
  """Sends a run signals as soon as it has got that far.

  Returns:
    Its exit code and what it printed.
  """
  deadline = time.monotonic() + 200
  while not MOMENTS[moment](folder) and process.poll(0.001) is None:
    assert time.monotonic() < deadline
  for number in signals:
    process.send_signal(number)
    time.sleep(0.01)
  return process.wait(200), process.output


# Each row is one run that is killed at one moment after the other.
@pytest.mark.slow
@pytest.mark.parametrize('moments', [
    ('evaluating first', 'compiling', 'saving', 'between evaluation and save'),
    ('saving first', 'evaluating', 'evaluating', 'ending')],
    ids=lambda moments: moments[0])
def test_killed_at_any_moment_and_resumed_equals_unbroken(
    unbroken, start, tmp_path, moments):
  for moment in moments:
    code, output = interrupt(start(tmp_path), tmp_path, moment, signal.SIGKILL)
    assert code == -signal.SIGKILL, output
  last = start(tmp_path)
  assert last.wait() == 0, last.output
  assert_same_run(unbroken, tmp_path)


@pytest.mark.slow
def test_sigterm_saves_where_it_is_and_resumes(unbroken, start, tmp_path):
  for moment in ('evaluating first', 'stepping', 'evaluating'):
    before = checkpoints.latest_step(str(tmp_path)) or 0
    # Told twice, it still saves.
    code, output = interrupt(
        start(tmp_path), tmp_path, moment, signal.SIGTERM, signal.SIGTERM)
    assert code == 143 and 'Traceback' not in output, output
    assert before < checkpoints.latest_step(str(tmp_path)) < FIRST + 9
  last = start(tmp_path)
  assert last.wait() == 0, last.output
  # The stopped run has saved more often, at steps of its own.
  assert_same_run(unbroken, tmp_path)


@pytest.mark.slow
def test_a_finished_run_is_left_alone(unbroken):
  before = {p: p.stat().st_mtime_ns for p in unbroken.rglob('checkpoint_*')}
  step, _ = run(unbroken)
  assert step == FIRST + 9
  assert before == {
      p: p.stat().st_mtime_ns for p in unbroken.rglob('checkpoint_*')}


@pytest.mark.slow
def test_frozen_weights_come_from_the_checkpoint(tmp_path):
  _, state = run(tmp_path, '--gin.TRAIN_STEPS_RELATIVE=2')
  saved = checkpoints.open_checkpoint(files.checkpoint())
  assert len(state.frozen) == len([n for n in saved if n[:6] == 'target'])
  for path, value in state.frozen.items():
    np.testing.assert_array_equal(
        np.asarray(value), saved[f'target/{path}'].get().astype(np.float32))


@pytest.mark.slow
def test_spot_starts_from_the_file_of_another_run(unbroken, tmp_path):
  source = (unbroken / 'numpy_checkpoints' / f'checkpoint_{FIRST + 9}' / PROMPT)
  arguments = [a.replace('from_sampled_vocab', 'from_file') for a in RUN]
  run(tmp_path, f'--gin.PROMPT_FILE={source}',
      '--gin.TRAIN_STEPS_RELATIVE=1',
      '--gin.MIXTURE_OR_TASK_NAME=demo_restaurant_sentiment',
      arguments=arguments)
  np.testing.assert_array_equal(prompt(tmp_path, FIRST), np.load(source))
  assert (prompt(tmp_path, FIRST + 1) != np.load(source)).any()


@pytest.mark.slow
def test_a_prompt_learns(tmp_path):
  run(tmp_path, '--gin.TRAIN_STEPS_RELATIVE=150', '--gin.EVAL_PERIOD=150',
      '--gin.EVALUATOR_NUM_EXAMPLES=200', '--gin.train.stats_period=50',
      '--gin.BATCH_SIZE=32',
      '--gin.utils.SaveCheckpointConfig.period=150')
  first, last = rows(tmp_path, EVALUATED)
  assert first['accuracy'] < 60
  assert last['accuracy'] > 75
  moved = [row['change_norm'] for row in rows(tmp_path)]
  assert moved[0] > 0 and moved == sorted(moved)


@pytest.mark.slow
def test_a_run_without_saves_begins_again_and_doubles_no_row(tmp_path):
  for _ in range(2):
    run(tmp_path, '--gin.TRAIN_STEPS_RELATIVE=2',
        '--gin.utils.SaveCheckpointConfig.period=None')
  assert checkpoints.all_steps(str(tmp_path)) == []
  assert [row['step'] - FIRST for row in rows(tmp_path)] == [1, 2]
  evaluated = rows(tmp_path, EVALUATED)
  assert [row['step'] - FIRST for row in evaluated] == [0, 2]


REFUSALS = {
    'a regex without match': (
        ["--gin.PROMPT_REGEX=['.*/promt/.*']"],
        r"'\.\*/promt/\.\*' matches no parameter.*/encoder/prompt/prompt"),
    'too few steps': (
        ['--gin.TRAIN_STEPS_RELATIVE=None', '--gin.TRAIN_STEPS=100'],
        r'TRAIN_STEPS is 100, but the run is at step'),
    'a parameter in neither': (
        ['--gin.utils.RestoreCheckpointConfig.assignment_map=()'],
        r'no .target/encoder/prompt/prompt/prompt.*assignment_map'),
    'no leave to initialise': (
        ['--gin.utils.RestoreCheckpointConfig.fallback_to_scratch=False'],
        r'fallback_to_scratch = True'),
    'a rule that matches nothing': (
        ["--gin.utils.RestoreCheckpointConfig.assignment_map="
         "(('.*prompt.*', None), ('nothing', None))"],
        r"'nothing' matches no parameter"),
    'another size': (
        ['--gin.MLP_DIM=128'], r'shape \[128, 256\].*model has \[128, 128\]'),
    'no checkpoint': (
        ['--gin.INITIAL_CHECKPOINT_PATH=/none/checkpoint_1'],
        r'/none/checkpoint_1'),
    'an unknown task': (
        ['--gin.MIXTURE_OR_TASK_NAME=demo_film'], r"'demo_film' is not reg"),
    'an uneven batch': (['--gin.BATCH_SIZE=12'], r'BATCH_SIZE 12'),
    'an uneven batch of evaluation': (
        ['--gin.infer_eval/utils.DatasetConfig.batch_size=12'],
        r'BATCH_SIZE 12'),
    'a wrong prompt': (
        ['--gin_file=prompts/from_file.gin', '--gin.PROMPT_FILE={file}'],
        r'shape \[3, 128\].*need \[10, 128\]'),
    'a misspelt argument': (['--gin.train.eval_perod=5'], r"'eval_period'"),
}


@pytest.mark.parametrize('what', REFUSALS)
def test_bad_input_is_refused_before_anything_is_written(what, tmp_path):
  extra, match = REFUSALS[what]
  file = tmp_path / 'prompt.npy'
  np.save(file, np.zeros((3, 128), np.float32))
  folder = tmp_path / 'run'
  with pytest.raises(ValueError, match=match):
    run(folder, *(a.format(file=file) if '{file}' in a else a for a in extra))
  assert not folder.exists()


@pytest.mark.slow
def test_the_program_exits_with_one_line(start, tmp_path):
  process = start(tmp_path / 'run', "--gin.PROMPT_REGEX=['.*/promt/.*']")
  assert process.wait() == 2
  output = process.output
  assert output.strip().startswith('error: ')
  assert 'Traceback' not in output and len(output.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_run_is_not_continued_on_another_model(unbroken, tmp_path):
  shutil.copytree(unbroken, tmp_path / 'run')
  # A model of other values, which the run would have to start from.
  other = tmp_path / 'other'
  arrays = checkpoints.open_checkpoint(files.checkpoint())
  state = train_state.TrainState(
      np.int32(FIRST), {name.removeprefix('target/'): 2 * array.get()
                        for name, array in arrays.items()
                        if name.startswith('target/')}, {}, ())
  checkpoints.Checkpointer(str(other)).save(
      state, checkpoints.RunRecord(0, 0))
  with pytest.raises(ValueError, match='INITIAL_CHECKPOINT_PATH'):
    run(tmp_path / 'run', '--gin.TRAIN_STEPS_RELATIVE=12',
        f'--gin.INITIAL_CHECKPOINT_PATH={other}/checkpoint_{FIRST}')
  with pytest.raises(ValueError, match='seed 3.*RANDOM_SEED is 4'):
    run(tmp_path / 'run', '--gin.RANDOM_SEED=4')


@pytest.mark.slow
def test_a_loss_that_explodes_stops_the_run(tmp_path):
  with pytest.raises(FloatingPointError, match=r'step \d'):
    run(tmp_path, '--gin.utils.create_learning_rate_scheduler.'
        'base_learning_rate=1e38')
  steps = checkpoints.all_steps(str(tmp_path))
  assert steps == [FIRST]
  assert np.isfinite(prompt(tmp_path, FIRST)).all()
