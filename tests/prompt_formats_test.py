"""PROMPT_FILE from the command line and from a notebook, in every format."""

import pathlib

import numpy as np
from prompt_tuning import interactive_model
from prompt_tuning import prompt_artifacts
from prompt_tuning import prompt_files
from prompt_tuning.demo import files
from prompt_tuning.demo import tasks
from prompt_tuning.scripts import convert_prompt
import pytest
from t5x import checkpoints
from t5x import export
from t5x import gin_utils
from t5x import infer
from t5x import program
from t5x import train
from t5x import train_state

pytestmark = pytest.mark.slow

FIRST = int(files.checkpoint().rsplit('_', 1)[1])
NAME = 'encoder.prompt.prompt.prompt'
TASK = 'demo_film_sentiment'
RUN = [
    '--gin_file=models/demo_prompt.gin',
    '--gin_file=prompts/{start}.gin',
    '--gin_file=runs/demo_finetune.gin',
    '--gin.TRAIN_STEPS_RELATIVE=1', '--gin.EVAL_PERIOD=0',
    '--gin.BATCH_SIZE=8', '--gin.RANDOM_SEED=3',
    '--gin.EVALUATOR_NUM_EXAMPLES=40',
    '--gin.infer_eval/utils.DatasetConfig.batch_size=40',
    '--gin.utils.SaveCheckpointConfig.period=1',
]
MODEL = ['models/demo_prompt.gin', 'models/decoding/greedy.gin']


def _train(folder, *extra, start='from_file', task=TASK):
  program.run_command(train.train, [
      *(argument.format(start=start) for argument in RUN),
      f'--gin.MODEL_DIR={folder}', f'--gin.MIXTURE_OR_TASK_NAME={task}',
      *extra])
  return folder / 'numpy_checkpoints'


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """The prompts of a run that took one step."""
  made = _train(
      tmp_path_factory.mktemp('source'),
      '--gin.PROMPT_STRING=the film was good', start='peft_text')
  return made / f'checkpoint_{FIRST + 1}'


@pytest.fixture(scope='module')
def other_model(tmp_path_factory):
  """A model of the same shapes and other values."""
  folder = tmp_path_factory.mktemp('other')
  arrays = checkpoints.open_checkpoint(files.checkpoint())
  checkpoints.Checkpointer(str(folder)).save(train_state.TrainState(
      np.int32(FIRST), {name.removeprefix('target/'): 1.1 * array.get()
                        for name, array in arrays.items()
                        if name.startswith('target/')}, {}, ()),
                                             checkpoints.RunRecord(0, 0))
  return str(folder / f'checkpoint_{FIRST}')


def _converted(source, folder, kind):
  output = folder / f'prompt.{kind}'
  assert convert_prompt.main([
      f'--input={source}', f'--output={output}', f'--format={kind}']) == 0
  return output


def test_a_run_leaves_an_artifact_beside_every_numpy_file(source):
  assert len(list(source.parent.iterdir())) == 2
  for folder in source.parent.iterdir():
    place = folder / f'{NAME}.artifact'
    np.testing.assert_array_equal(
        prompt_artifacts.read(place).prompt, np.load(folder / NAME))
    assert sum(p.stat().st_size for p in place.iterdir()) < 40_000
  record = prompt_artifacts.read(source / f'{NAME}.artifact').record
  assert (record.task, record.seed, record.first_step, record.step) == (
      TASK, 3, FIRST, FIRST + 1)
  assert record.batch_size == 8 and record.parent is None
  assert list(record.metrics) == [f'{TASK}/accuracy']
  assert record.base.path == files.checkpoint()
  assert record.base.embeddings == (1024, 128)
  assert record.tokenizer == prompt_artifacts.tokenizer_of(tasks.vocabulary())
  assert "PROMPT_STRING = 'the film was good'" in record.recipe


@pytest.mark.parametrize('kind', [None, 'peft'])
def test_a_prompt_starts_as_one_of_any_format(source, tmp_path, kind):
  file = source if kind is None else _converted(source, tmp_path, kind)
  made = _train(tmp_path / 'run', f'--gin.PROMPT_FILE={file}',
                task='demo_restaurant_sentiment')
  np.testing.assert_array_equal(
      np.load(made / f'checkpoint_{FIRST}' / NAME), np.load(source / NAME))
  parent = prompt_artifacts.read(
      made / f'checkpoint_{FIRST + 1}' / f'{NAME}.artifact').record.parent
  assert parent == prompt_artifacts.Parent(
      prompt_files.located(str(file)),
      prompt_artifacts.sha256(np.load(source / NAME)),
      TASK if kind is None else None)


def test_training_on_another_model_is_refused_before_anything_is_written(
    source, other_model, tmp_path):
  with pytest.raises(ValueError, match=(
      f'{NAME}.artifact was trained on the model {files.checkpoint()} .*'
      f'but this run has {other_model} ')):
    _train(tmp_path / 'run', f'--gin.PROMPT_FILE={source}',
           f'--gin.INITIAL_CHECKPOINT_PATH={other_model}')
  assert not (tmp_path / 'run').exists()


def _infer(output, file, checkpoint, *extra):
  (path,) = program.run_command(infer.infer, [
      *(f'--gin_file={name}' for name in MODEL),
      '--gin_file=runs/prompt_infer.gin', f'--gin.INFER_OUTPUT_DIR={output}',
      f'--gin.MIXTURE_OR_TASK_NAME={TASK}',
      '--gin.MIXTURE_OR_TASK_MODULE=prompt_tuning.demo.tasks',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}",
      "--gin.utils.DatasetConfig.split='validation'",
      "--gin.infer.mode='score'", f'--gin.PROMPT_FILE={file}',
      f'--gin.CHECKPOINT_PATH={checkpoint}', *extra])
  return pathlib.Path(path).read_bytes()


def test_inference_takes_any_format_and_the_right_model_only(
    source, other_model, tmp_path):
  # It restores bfloat16; the artifact was made by a run in float32.
  first, second, third = (
      _infer(tmp_path / str(i), file, files.checkpoint()) for i, file in
      enumerate((source / NAME, source, _converted(source, tmp_path, 'peft'))))
  assert first == second == third
  with pytest.raises(ValueError, match=f'but this run has {other_model}'):
    _infer(tmp_path / 'refused', source / NAME, other_model)
  assert not (tmp_path / 'refused').exists()
  # A numpy file says nothing of its model without the artifact beside it.
  np.save(tmp_path / 'alone.npy', np.load(source / NAME))
  unchecked = _infer(
      tmp_path / 'numpy', tmp_path / 'alone.npy', other_model)
  assert unchecked != first
  assert unchecked == _infer(
      tmp_path / 'anyway', source, other_model,
      '--gin.require_same_base.enforce=False')


def test_a_notebook_takes_an_artifact_and_the_right_model_only(
    source, other_model):
  options = {
      'model': gin_utils.value_of('%MODEL', MODEL), 'batch_size': 8,
      'task_feature_lengths': {'inputs': 32, 'targets': 4},
      'prompt_file': str(source)}
  made = interactive_model.InteractiveModel(
      checkpoint_path=files.checkpoint(), **options)
  np.testing.assert_array_equal(
      made.train_state.frozen['encoder/prompt/prompt/prompt'],
      np.load(source / NAME))
  with pytest.raises(ValueError, match=f'but this run has {other_model}'):
    interactive_model.InteractiveModel(checkpoint_path=other_model, **options)


def test_an_export_takes_the_right_model_only(source, other_model, tmp_path):
  with pytest.raises(ValueError, match=f'but this run has {other_model}'):
    program.run_command(export.save, [
        *(f'--gin_file={name}' for name in MODEL),
        '--gin_file=runs/prompt_export.gin', '--gin.MODEL_NAME=demo',
        f'--gin.MODEL_OUTPUT_DIR={tmp_path / "out"}',
        f'--gin.PROMPT_FILE={source}', f'--gin.CHECKPOINT_PATH={other_model}',
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}"])
  assert not (tmp_path / 'out').exists()


def test_another_vocabulary_is_refused(source, tmp_path):
  more = tmp_path / 'more.gin'
  more.write_text(
      'from __gin__ import dynamic_registration\nimport seqio\n'
      'from prompt_tuning import prompt_files\n'
      'prompt_files.require_same_base.vocabulary = @seqio.ByteVocabulary()\n')
  with pytest.raises(ValueError, match=(
      'the vocabulary SentencePieceVocabulary of 900 .*ByteVocabulary of')):
    _infer(tmp_path / 'out', source, files.checkpoint(), f'--gin_file={more}')
