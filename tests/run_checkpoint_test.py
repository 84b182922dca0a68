"""A run's own checkpoints from the command line and from a notebook."""

import json
import pathlib

import numpy as np
from prompt_tuning import interactive_model
from prompt_tuning.data import label_metrics
from prompt_tuning.demo import files
from prompt_tuning.demo import tasks
import pytest
from t5x import eval as eval_script
from t5x import gin_utils
from t5x import infer
from t5x import program
from t5x import train

pytestmark = pytest.mark.slow

FIRST = int(files.checkpoint().rsplit('_', 1)[1])
TASK = tasks.SOURCES[0]
PROMPT = 'encoder.prompt.prompt.prompt'
MODEL = ['--gin_file=models/demo_prompt.gin',
         '--gin_file=models/decoding/greedy.gin']
DATA = [
    f'--gin.MIXTURE_OR_TASK_NAME={TASK.name}',
    '--gin.MIXTURE_OR_TASK_MODULE=prompt_tuning.demo.tasks',
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}",
    "--gin.utils.DatasetConfig.split='validation'",
]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run that saved at steps 0, 4 and 8 after its first."""
  folder = tmp_path_factory.mktemp('run')
  program.run_command(train.train, [
      '--gin_file=models/demo_prompt.gin',
      '--gin_file=prompts/from_sampled_vocab.gin',
      '--gin_file=runs/demo_finetune.gin', f'--gin.MODEL_DIR={folder}',
      f'--gin.MIXTURE_OR_TASK_NAME={TASK.name}', '--gin.RANDOM_SEED=0',
      '--gin.TRAIN_STEPS_RELATIVE=8', '--gin.EVAL_PERIOD=0',
      '--gin.train.infer_eval_dataset_cfg=None',
      '--gin.utils.SaveCheckpointConfig.period=4',
      '--gin.utils.SaveCheckpointConfig.keep=None'])
  return folder


def _prompt_file(run, step):
  return run / 'numpy_checkpoints' / f'checkpoint_{FIRST + step}' / PROMPT


def _evaluate(output, path, mode, *extra, file='t5x/configs/runs/eval.gin'):
  results = program.run_command(eval_script.evaluate, [
      *MODEL, f'--gin_file={file}', f'--gin.CHECKPOINT_PATH={path}',
      f'--gin.utils.RestoreCheckpointConfig.mode={mode}',
      f'--gin.EVAL_OUTPUT_DIR={output}', *DATA, *extra])
  name = f'inference_eval/{TASK.name}-metrics.jsonl'
  return results, [json.loads(line) for line in (
      pathlib.Path(output) / name).read_text().splitlines()]


def test_all_checkpoints_are_evaluated_once(run, tmp_path):
  _, rows = _evaluate(tmp_path, run, 'all')
  assert [row['step'] for row in rows] == [FIRST, FIRST + 4, FIRST + 8]
  done = tmp_path / f'eval.{TASK.name}.ckpt'
  everything = done.read_text()
  assert everything.splitlines() == [
      str(run / f'checkpoint_{FIRST + step}') for step in (0, 4, 8)]
  results, again = _evaluate(tmp_path, run, 'all')
  assert (results, again) == ({}, rows)
  # Killed after the metrics of the last were written, before that was noted.
  done.write_text('\n'.join(everything.splitlines()[:2]))
  results, again = _evaluate(tmp_path, run, 'all')
  assert again == rows and done.read_text() == everything
  assert results[TASK.name]['accuracy'] == rows[-1]['accuracy']
  # What the run's prompt file says over the base, its checkpoint says too.
  from_file, _ = _evaluate(
      tmp_path / 'file', files.checkpoint(), 'specific',
      f'--gin.PROMPT_FILE={_prompt_file(run, 8)}', file='runs/prompt_eval.gin')
  assert from_file == results


def _infer(output, file, *arguments):
  (path,) = program.run_command(infer.infer, [
      *MODEL, f'--gin_file={file}', f'--gin.INFER_OUTPUT_DIR={output}', *DATA,
      *arguments])
  return pathlib.Path(path).read_bytes()


def test_a_checkpoint_infers_what_its_prompt_file_does(run, tmp_path):
  score = "--gin.infer.mode='score'"
  base = f'--gin.CHECKPOINT_PATH={files.checkpoint()}'
  from_run = _infer(
      tmp_path / 'run', 't5x/configs/runs/infer.gin', score,
      f'--gin.CHECKPOINT_PATH={run / f"checkpoint_{FIRST + 8}"}')
  from_file, earlier = (_infer(
      tmp_path / str(step), 'runs/prompt_infer.gin', score, base,
      f'--gin.PROMPT_FILE={_prompt_file(run, step)}') for step in (8, 4))
  assert from_run == from_file != earlier


_WITH_TRAINING_METRICS = """
from __gin__ import dynamic_registration
import __main__ as eval_script
from t5x import models
from t5x import trainer
eval_script.evaluate.training_evaluator_cls = @trainer.Trainer
models.EncoderDecoderModel.z_loss = 0.0
"""


def test_the_training_metrics_are_of_every_example(run, tmp_path):
  more = tmp_path / 'more.gin'
  more.write_text(_WITH_TRAINING_METRICS)
  batch = '--gin.utils.DatasetConfig.batch_size=48'  # 2.08 batches.
  arguments = (tmp_path, run, 'all', f'--gin_file={more}', batch)
  _evaluate(*arguments)
  (tmp_path / f'eval.{TASK.name}.ckpt').unlink()
  _evaluate(*arguments)  # As after a kill: no row twice.
  path = tmp_path / 'training_eval' / TASK.name / 'metrics.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row['step'] for row in rows] == [FIRST, FIRST + 4, FIRST + 8]
  scores = [json.loads(line)['score'] for line in _infer(
      tmp_path / 'score', 't5x/configs/runs/infer.gin',
      "--gin.infer.mode='score'",
      f'--gin.CHECKPOINT_PATH={run / f"checkpoint_{FIRST + 8}"}',
      "--gin.utils.RestoreCheckpointConfig.dtype='float32'").splitlines()]
  assert rows[-1]['cross_ent_loss'] == pytest.approx(
      -sum(scores) / 3, rel=1e-3)  # Per batch.


def _model():
  """The model; what it has not traced yet is configured as long as gin is."""
  return gin_utils.value_of('%MODEL', [
      'models/demo_prompt.gin', 'models/decoding/greedy.gin'])


@pytest.fixture(scope='module')
def made(run):
  return interactive_model.InteractiveModel(
      model=_model(), checkpoint_path=files.checkpoint(), batch_size=32,
      task_feature_lengths={'inputs': 32, 'targets': 4},
      prompt_file=str(_prompt_file(run, 8)), dtype='bfloat16')


@pytest.fixture
def asked(made):
  _model()  # The configuration was cleared after the last test.
  return made


EXAMPLES = tasks.examples(TASK, 'validation')


def test_a_notebook_says_what_the_command_line_writes(run, made, tmp_path):
  arguments = [
      f'--gin.CHECKPOINT_PATH={files.checkpoint()}',
      f'--gin.PROMPT_FILE={_prompt_file(run, 8)}']
  texts = [text for text, _ in EXAMPLES]
  rows, scored = ([json.loads(line)[name] for line in _infer(
      tmp_path / name, 'runs/prompt_infer.gin', f"--gin.infer.mode='{mode}'",
      *arguments).splitlines()] for mode, name in (
          ('predict', 'prediction'), ('score', 'score')))
  _model()
  asked = made
  assert asked.predict(texts) == rows
  assert asked.score(EXAMPLES) == scored
  predictions, aux = asked.predict_with_aux(texts)
  assert predictions == rows and len(aux['scores']) == len(rows)
  as_mappings = [{'input': text, 'target': label} for text, label in EXAMPLES]
  found = asked.evaluate(as_mappings, [
      label_metrics.accuracy,
      lambda targets, scores: {'mean': np.mean(scores)}])
  right = [p == label for p, (_, label) in zip(rows, EXAMPLES, strict=True)]
  assert found == {'accuracy': 100 * np.mean(right), 'mean': np.mean(scored)}


def test_a_notebook_compiles_once(asked):
  for count in (1, 2, 33):
    assert len(asked.predict(['the film was good'] * count)) == count
    assert len(asked.score([('the film was good', 'yes')] * count)) == count
  steps = asked._runner._steps
  assert steps['predict']._cache_size() == steps['score']._cache_size() == 1


@pytest.mark.parametrize('examples', [[], 'the film', [('a',)], [3]])
def test_what_is_no_list_of_examples_is_refused(asked, examples):
  with pytest.raises(ValueError, match='InteractiveModel'):
    asked.score(examples)


def test_a_prompt_that_does_not_fit_is_refused(asked, tmp_path):
  path = tmp_path / 'prompt.npy'
  np.save(path, np.zeros((3, 128), np.float32))
  with pytest.raises(ValueError, match=r'\[3, 128\].*\[10, 128\]'):
    interactive_model.InteractiveModel(
        model=asked.model, checkpoint_path=files.checkpoint(), batch_size=8,
        task_feature_lengths={'inputs': 32, 'targets': 4},
        prompt_file=str(path))


def test_ranking_is_brute_force_over_the_labels(run, made, tmp_path):
  figures = program.run_command(eval_script.evaluate, [
      *MODEL, '--gin_file=runs/prompt_eval.gin',
      f'--gin.CHECKPOINT_PATH={files.checkpoint()}',
      "--gin.utils.RestoreCheckpointConfig.dtype='bfloat16'",
      f'--gin.PROMPT_FILE={_prompt_file(run, 8)}',
      f'--gin.EVAL_OUTPUT_DIR={tmp_path}', *DATA,
      f'--gin.MIXTURE_OR_TASK_NAME={TASK.name}_rank'])
  _model()
  by_label = np.stack([
      made.score([(text, label) for text, _ in EXAMPLES])
      for label in TASK.labels], axis=1)
  truth = np.array([TASK.labels.index(label) for _, label in EXAMPLES])
  found = figures[f'{TASK.name}_rank']
  assert found['accuracy'] == pytest.approx(
      100 * np.mean(by_label.argmax(axis=1) == truth))
  margin = by_label[:, 1] - by_label[:, 0]
  pairs = margin[truth == 1][:, None] > margin[truth == 0][None]
  assert found['auc-roc'] == pytest.approx(100 * pairs.mean(), abs=0.1)
