"""A folder of Hugging Face, or a name of the hub, as a run's frozen model."""

import json
import pathlib
import shutil

import numpy as np
from prompt_tuning import prompt_artifacts
from prompt_tuning.demo import files
from prompt_tuning.demo import tasks
from prompt_tuning.scripts import convert_checkpoint
from prompt_tuning.scripts import convert_prompt
import pytest
from safetensors import numpy as safetensors_numpy
from t5x import checkpoints
from t5x import eval as eval_script
from t5x import export
from t5x import infer
from t5x import program
from t5x import train

pytestmark = pytest.mark.slow

PROMPT = 'encoder.prompt.prompt.prompt'
LENGTHS = "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}"
MODEL = ['--gin_file=models/hugging_face_prompt.gin',
         '--gin_file=models/decoding/greedy.gin',
         '--gin.ACTIVATION_DTYPE=float32', '--gin.PROMPT_LENGTH=10']


def model_folder(folder):
  """The demo's model as a folder of Hugging Face, with its vocabulary."""
  assert convert_checkpoint.main([
      f'--checkpoint={files.checkpoint()}', '--to=hugging_face',
      f'--output_dir={folder}']) == 0
  shutil.copy(tasks.VOCABULARY_FILE, folder / 'spiece.model')
  return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return model_folder(tmp_path_factory.mktemp('hugging_face') / 'model')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Files for `runs/from_files.gin`."""
  root, paths = tmp_path_factory.mktemp('data'), {}
  rows = tasks.examples(tasks.SOURCES[0], 'validation')[:64]
  for split, part in (('train', rows[:32]), ('validation', rows[32:])):
    paths[split] = str(root / f'{split}.jsonl')
    pathlib.Path(paths[split]).write_text(''.join(
        json.dumps({'text': text, 'label': label}) + '\n'
        for text, label in part))
  return [
      '--gin_file=runs/from_files.gin', f'--gin.FILES={paths}', LENGTHS,
      "--gin.INPUTS='{text}'", "--gin.TARGETS='{label}'"]


def learn(model_dir, model, data, steps=3):
  """Trains a prompt that starts at the labels' embeddings."""
  program.run_command(train.train, [
      *MODEL, '--gin_file=prompts/from_class_labels.gin',
      '--gin_file=runs/prompt_finetune.gin', *data, f'--gin.HF_MODEL={model}',
      f'--gin.MODEL_DIR={model_dir}', "--gin.CLASS_LABELS=['no', 'yes']",
      '--gin.BATCH_SIZE=8', f'--gin.TRAIN_STEPS={steps}',
      '--gin.EVAL_PERIOD=100', '--gin.RANDOM_SEED=0',
      '--gin.utils.SaveCheckpointConfig.period=3'])


def prompt(model_dir, step):
  return np.load(
      model_dir / 'numpy_checkpoints' / f'checkpoint_{step}' / PROMPT)


@pytest.fixture(scope='module')
def run(folder, data, tmp_path_factory):
  """A run that stands on the folder."""
  model_dir = tmp_path_factory.mktemp('run') / 'run'
  learn(model_dir, folder, data)
  return model_dir


def test_steps_are_counted_from_zero(run, folder):
  save = checkpoints.Save(str(run / 'checkpoint_3'))
  assert save.record.first_step == 0
  assert save.record.base.path == str(folder)
  rows = [json.loads(line) for line in (
      run / 'train' / 'metrics.jsonl').read_text().splitlines()]
  assert rows[-1]['step'] == 3


def test_the_prompt_starts_at_embeddings_of_the_folder(run, folder):
  table = safetensors_numpy.load_file(
      folder / 'model.safetensors')['shared.weight']
  vocabulary = tasks.vocabulary()
  for row, label in enumerate(['no', 'yes']):
    np.testing.assert_array_equal(
        prompt(run, 0)[row], table[vocabulary.encode(label)].mean(axis=0))


def test_its_artifact_names_the_task_and_the_folder(run, folder, tmp_path):
  record = prompt_artifacts.read(
      run / 'numpy_checkpoints' / 'checkpoint_3' / f'{PROMPT}.artifact').record
  assert record.task == checkpoints.Save(str(run / 'checkpoint_3')).record.task
  assert record.task.startswith('from_files_')
  assert record.base.path == str(folder)
  # The same model, read by the tool.
  np.save(tmp_path / 'plain.npy', prompt(run, 3))
  assert convert_prompt.main([
      f'--input={tmp_path / "plain.npy"}', f'--output={tmp_path / "bound"}',
      '--format=artifact', f'--base_checkpoint={folder}']) == 0
  assert prompt_artifacts.read(
      tmp_path / 'bound').record.base.fingerprint == record.base.fingerprint


def test_it_learns_what_it_learns_on_the_same_model_of_t5x(
    run, folder, data, tmp_path):
  assert convert_checkpoint.main([
      f'--checkpoint={folder}', '--to=t5x', f'--output_dir={tmp_path}']) == 0
  learn(tmp_path / 'run', folder, [
      *data, f'--gin.INITIAL_CHECKPOINT_PATH={tmp_path}/checkpoint_0'])
  assert np.any(prompt(run, 3) != prompt(run, 0))
  np.testing.assert_array_equal(prompt(tmp_path / 'run', 3), prompt(run, 3))


def test_a_run_is_evaluated_on_the_folder_that_it_names(
    run, folder, data, tmp_path):
  for output, checkpoint, more in (
      ('run', run / 'checkpoint_3', ['--gin_file=t5x/configs/runs/eval.gin']),
      ('file', None, ['--gin_file=runs/prompt_eval.gin', f'--gin.PROMPT_FILE='
                      f'{run}/numpy_checkpoints/checkpoint_3/{PROMPT}'])):
    program.run_command(eval_script.evaluate, [
        *MODEL, *more, *data, f'--gin.HF_MODEL={folder}',
        f'--gin.EVAL_OUTPUT_DIR={tmp_path / output}',
        '--gin.utils.DatasetConfig.split=validation',
        *([f'--gin.CHECKPOINT_PATH={checkpoint}'] if checkpoint else [])])
  found = [next((tmp_path / name / 'inference_eval').glob(
      '*-metrics.jsonl')).read_text() for name in ('run', 'file')]
  accuracies = [json.loads(text)['accuracy'] for text in found]
  assert accuracies[0] == accuracies[1]


def test_a_run_is_not_continued_on_other_weights(run, folder, data, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  shutil.copytree(folder, tmp_path / 'model')
  file = tmp_path / 'model' / 'model.safetensors'
  tensors = safetensors_numpy.load_file(file)
  tensors['decoder.final_layer_norm.weight'][5] += 1
  safetensors_numpy.save_file(tensors, file)
  with pytest.raises(checkpoints.CheckpointError, match='frozen model'):
    learn(tmp_path / 'run', tmp_path / 'model', data, steps=5)
  learn(tmp_path / 'run', folder, data, steps=5)


def test_a_model_of_the_hub_infers_what_the_same_model_of_t5x_does(
    run, hub, tmp_path):
  snapshot = hub('owner/model', model_folder(tmp_path / 'made'))
  (tmp_path / 'inputs.txt').write_text(
      'the film was good\nthe film was bad\nthe actors were fresh\n')
  found = []
  for name, more in (
      ('hub', ['--gin.HF_MODEL=hf:owner/model']),
      ('t5x', [f'--gin.HF_MODEL={snapshot}',
               f'--gin.CHECKPOINT_PATH={files.checkpoint()}'])):
    program.run_command(infer.infer, [
        *MODEL, '--gin_file=runs/prompt_infer_file.gin', LENGTHS, *more,
        f'--gin.INPUT_FILE={tmp_path}/inputs.txt',
        f'--gin.INFER_OUTPUT_DIR={tmp_path / name}',
        f'--gin.PROMPT_FILE={run}/numpy_checkpoints/checkpoint_3/{PROMPT}'])
    found.append((tmp_path / name / 'inputs-predict.jsonl-00000-of-00001'
                  ).read_text())
  assert found[0] == found[1] and len(found[0].splitlines()) == 3
  program.run_command(export.save, [
      *MODEL, '--gin_file=runs/prompt_export.gin', LENGTHS,
      '--gin.HF_MODEL=hf:owner/model', f'--gin.MODEL_OUTPUT_DIR={tmp_path}',
      '--gin.MODEL_NAME=served',
      f'--gin.PROMPT_FILE={run}/numpy_checkpoints/checkpoint_3/{PROMPT}'])
  assert list(tmp_path.glob('served_cpu/*/saved_model.pb'))


def test_a_registered_task_in_the_vocabulary_of_the_folder(
    folder, tmp_path, capsys):
  arguments = [
      *MODEL, '--gin_file=runs/prompt_finetune.gin', f'--gin.HF_MODEL={folder}',
      '--gin.MIXTURE_OR_TASK_MODULE=prompt_tuning.demo.tasks',
      f'--gin.MODEL_DIR={tmp_path}/run', '--gin.TRAIN_STEPS=2',
      '--gin.USE_CACHED_TASKS=False', LENGTHS, '--dry_run']
  # The demo's tasks name the same vocabulary by another path.
  with pytest.raises(ValueError, match='but the model has'):
    program.run_command(train.train, [
        *arguments, '--gin.MIXTURE_OR_TASK_NAME=demo_film_sentiment'])
  program.run_command(train.train, [
      *arguments, '--gin_file=runs/in_vocabulary.gin',
      '--gin.TASK=demo_film_sentiment'])
  assert 'first example of demo_film_sentiment_in_' in capsys.readouterr().out


@pytest.mark.parametrize('change,says', [
    ('EMBED_DIM=256', 'emb_dim is 256 but should be 128'),
    ('t5x.examples.t5.network.T5Config.relpos_max_distance=64',
     'relpos_max_distance is 64 but should be 128')])
def test_a_model_file_of_another_model_is_refused_before_anything_is_read(
    folder, data, tmp_path, change, says):
  with pytest.raises(checkpoints.CheckpointError, match=says):
    program.run_command(train.train, [
        '--gin_file=models/demo_prompt.gin',
        '--gin_file=runs/prompt_finetune.gin', *data,
        f'--gin.INITIAL_CHECKPOINT_PATH={folder}', f'--gin.{change}',
        f'--gin.MODEL_DIR={tmp_path}/run', '--gin.TRAIN_STEPS=2',
        '--gin.BATCH_SIZE=8'])
  assert not (tmp_path / 'run').exists()
