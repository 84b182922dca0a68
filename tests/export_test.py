"""What is exported answers as `t5x.infer` does, where there is no JAX."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
from prompt_tuning.demo import files
from prompt_tuning.demo import tasks
import pytest
import seqio
from t5x import decoding_state
from t5x import export
from t5x import infer
from t5x import program
import tensorflow as tf

pytestmark = pytest.mark.slow

TASK = tasks.TARGETS[0]
PAIRS = tasks.examples(TASK, 'validation')[:6]
# Longer than the model takes, of unknown letters, and of nothing.
TEXTS = [text for text, _ in PAIRS] + [
    'the film was good ' * 20, '\u00e9\u00e8!', '']
COMMON = [
    '--gin_file=models/demo_prompt.gin',
    f'--gin.CHECKPOINT_PATH={files.checkpoint()}',
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}",
    "--gin.utils.RestoreCheckpointConfig.dtype='float32'"]
EXPORT = [*COMMON, '--gin.ACTIVATION_DTYPE=float32', '--gin.MODEL_NAME=demo']

# Loads a model and calls it; nothing of ours, and no JAX, can be imported.
CLIENT = """
import json, sys
for name in ('jax', 'jaxlib', 'flax', 't5x', 'prompt_tuning', 'seqio'):
  sys.modules[name] = None
import tensorflow as tf
import tensorflow_text
said = []
for folder, call in json.loads(sys.stdin.read()):
  answer = tf.saved_model.load(folder).signatures['serving_default']
  out = answer(**{name: tf.constant([bytes(text, 'latin1') for text in texts])
                  for name, texts in call.items()})
  said.append({k: v.numpy().tolist() for k, v in sorted(out.items())})
print(json.dumps(said, default=lambda text: text.decode()))
"""


def ask(*calls):
  """The answers to calls, each a model's folder and texts by name."""
  def plain(text):
    return (text if isinstance(text, bytes) else text.encode()).decode('latin1')

  given = [(folder, {name: [plain(text) for text in texts]
                     for name, texts in call.items()})
           for folder, call in calls]
  done = subprocess.run(
      [sys.executable, '-c', CLIENT], input=json.dumps(given),
      capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


def inferred(prompt, folder, rows, *arguments):
  """The rows of `t5x.infer` over inputs, or pairs of input and target."""
  file = folder / 'rows.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (path,) = program.run_command(infer.infer, [
      *COMMON, '--gin_file=runs/prompt_infer_file.gin',
      f'--gin.PROMPT_FILE={prompt}', f'--gin.INPUT_FILE={file}',
      f'--gin.INFER_OUTPUT_DIR={folder}/out', *arguments])
  return [json.loads(line)
          for line in pathlib.Path(path).read_text().splitlines()]


def exported(prompt, folder, *arguments):
  """The folder of an exported model."""
  return program.run_command(export.save, [
      *EXPORT, '--gin_file=runs/prompt_export.gin',
      f'--gin.PROMPT_FILE={prompt}', f'--gin.MODEL_OUTPUT_DIR={folder}',
      *arguments])


@pytest.fixture(scope='module')
def prompt(tmp_path_factory):
  path = tmp_path_factory.mktemp('prompt') / 'prompt.npy'
  np.save(path, np.random.default_rng(0).normal(
      size=(10, 128), scale=0.5).astype(np.float32))
  return str(path)


def test_predictions_are_those_of_infer_for_any_number_of_texts(
    prompt, tmp_path):
  rows = inferred(
      prompt, tmp_path, [{'inputs': text} for text in TEXTS],
      '--gin_file=models/decoding/beam_search.gin',
      "--gin.infer.mode='predict_with_aux'")
  folder = exported(
      prompt, tmp_path, '--gin_file=models/decoding/beam_search.gin',
      '--gin.BEAM_SIZE=4')
  parent = tmp_path / 'demo_cpu'
  assert [str(path) for path in parent.iterdir()] == [folder]
  assert pathlib.Path(folder).name.isdigit()
  some, all_texts = ask((folder, {'text_batch': TEXTS[:2]}),
                        (folder, {'text_batch': TEXTS}))
  # Four decodes of each, the best one last.
  best = [decodes[-1] for decodes in all_texts['output_0']]
  assert best == [row['prediction'] for row in rows]
  assert len(set(best)) > 3
  scores = np.array(all_texts['output_1'])
  assert scores.shape == (len(TEXTS), 4)
  assert (np.diff(scores) >= 0).all()
  np.testing.assert_allclose(
      scores[:, -1], [row['aux']['scores'] for row in rows], atol=1e-4)
  assert some['output_0'] == all_texts['output_0'][:2]


def test_scores_are_those_of_infer(prompt, tmp_path):
  pairs = [(text, label) for text in TEXTS[:3] for label in ('yes', 'no')]
  rows = inferred(
      prompt, tmp_path, [{'q': text, 'a': label} for text, label in pairs],
      '--gin.INPUT_FIELD=q', '--gin.TARGET_FIELD=a',
      "--gin.infer.mode='score'")
  folder = exported(
      prompt, tmp_path, "--gin.export_lib.save.inference_mode='score'",
      "--gin.create_postprocessor.output_feature_names=['likelihood']")
  (said,) = ask((folder, {'text_batch': [text for text, _ in pairs],
                          'targets': [label for _, label in pairs]}))
  np.testing.assert_allclose(
      said['likelihood'], [row['score'] for row in rows], atol=1e-4)


@seqio.map_over_dataset
def _lowered(example):
  text = example['inputs']
  if tf.strings.length(text) > 1:  # AutoGraph turns this into a graph.
    text = tf.strings.lower(text)
  return {**example, 'inputs': text}


@pytest.fixture
def lowering():
  """The name of a task that takes capital letters."""
  task = seqio.TaskRegistry.get(TASK.name)
  seqio.TaskRegistry.add(
      'lowering', source=task.source, output_features=task.output_features,
      preprocessors=[_lowered, *task.preprocessors])
  yield 'lowering'
  seqio.TaskRegistry.remove('lowering')


def test_a_task_prepares_texts_its_own_way(prompt, lowering, tmp_path):
  texts = [text for text, _ in PAIRS]
  task = ['--gin_file=t5x/configs/runs/export_seqio.gin',
          f'--gin.MIXTURE_OR_TASK_NAME={lowering}',
          '--gin_file=models/decoding/greedy.gin']
  plain = exported(
      prompt, tmp_path, *task, f'--gin.BATCH_SIZE={len(texts)}',
      '--gin.create_preprocessor_from_task.serialized_examples=False')
  serialized = exported(prompt, tmp_path, *task)
  assert int(pathlib.Path(serialized).name) > int(pathlib.Path(plain).name)
  rows = inferred(prompt, tmp_path, [{'inputs': text} for text in texts],
                  '--gin_file=models/decoding/greedy.gin')
  expected = [row['prediction'] for row in rows]
  examples = [tf.train.Example(features=tf.train.Features(feature={
      'inputs': tf.train.Feature(bytes_list=tf.train.BytesList(
          value=[text.upper().encode()]))})).SerializeToString()
              for text in texts]
  for said in ask((plain, {'text_batch': [text.upper() for text in texts]}),
                  (serialized, {'text_batch': examples})):
    assert said['output_0'] == [[text] for text in expected]


def test_a_program_that_tensorflow_cannot_read_is_not_written(
    prompt, tmp_path, monkeypatch):
  monkeypatch.setattr(decoding_state, 'top_k', jax.lax.top_k)
  with pytest.raises(ValueError, match='TensorFlow .* cannot run what JAX'):
    exported(prompt, tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('wrong,said', [
    ("--gin.export_lib.save.inference_mode='guess'", "'guess'.*predict, score"),
    ('--gin.MODEL_NAME=a/b', "MODEL_NAME is 'a/b'"),
    ('--gin.BATCH_SIZE=0', 'BATCH_SIZE is 0'),
    ('--gin.MODEL_OUTPUT_DIR=gs://bucket', 'local or mounted'),
    ('--gin.CHECKPOINT_PATH=/nowhere', '/nowhere'),
    ('--gin_file=t5x/configs/runs/export_seqio.gin', 'MIXTURE_OR_TASK_NAME is'),
])
def test_what_cannot_be_exported_is_refused(wrong, said, prompt, tmp_path):
  with pytest.raises(ValueError, match=said):
    exported(prompt, tmp_path, wrong)
  assert not list(tmp_path.iterdir())
