"""Evaluation and inference from the command line, on the demo's model."""

import functools
import json
import pathlib
import re

import numpy as np
from prompt_tuning.demo import files
from prompt_tuning.demo import tasks
import pytest
from t5x import checkpoints
from t5x import decoding
from t5x import eval as eval_script
from t5x import evaluation
from t5x import infer
from t5x import inference_state
from t5x import models
from t5x import optimizers
from t5x import partitioning
from t5x import program
from t5x.examples.t5 import network
import tensorflow as tf

pytestmark = pytest.mark.slow

TASK = tasks.TARGETS[0]
SIZE = tasks.EVALUATION_SIZES['validation']
COMMON = [
    f'--gin.CHECKPOINT_PATH={files.checkpoint()}',
    f'--gin.MIXTURE_OR_TASK_NAME={TASK.name}',
    '--gin.MIXTURE_OR_TASK_MODULE=prompt_tuning.demo.tasks',
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}",
    "--gin.utils.DatasetConfig.split='validation'",
    # Not a divisor of the number of examples: the last batch is padded.
    '--gin.utils.DatasetConfig.batch_size=32',
]

FROM_FILE = [
    '--gin_file=models/demo_prompt.gin',
    '--gin_file=models/decoding/greedy.gin',
    '--gin_file=runs/prompt_infer_file.gin',
    f'--gin.CHECKPOINT_PATH={files.checkpoint()}',
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}",
]


@pytest.fixture(scope='module')
def prompt(tmp_path_factory):
  """A prompt that has learned nothing; what matters is that it is used."""
  path = tmp_path_factory.mktemp('prompt') / 'encoder.prompt.prompt.prompt'
  with path.open('wb') as file:
    np.save(file, np.random.default_rng(0).normal(
        size=(10, 128)).astype(np.float32))
  return path


def _infer(prompt, output, mode, *extra):
  (path,) = program.run_command(infer.infer, [
      '--gin_file=models/demo_prompt.gin',
      '--gin_file=models/decoding/greedy.gin',
      '--gin_file=runs/prompt_infer.gin', f'--gin.PROMPT_FILE={prompt}',
      f'--gin.INFER_OUTPUT_DIR={output}', f"--gin.infer.mode='{mode}'",
      *COMMON, *extra])
  return path, _rows(path)


def _rows(path):
  return [json.loads(line)
          for line in pathlib.Path(path).read_text().splitlines()]


@pytest.fixture(scope='module')
def predictions(prompt, tmp_path_factory):
  return _infer(prompt, tmp_path_factory.mktemp('predict'), 'predict')


def test_every_example_has_one_row_in_order(predictions):
  path, rows = predictions
  assert path.endswith(f'{TASK.name}-predict.jsonl-00000-of-00001')
  assert len(rows) == SIZE
  for row, (text, label) in zip(
      rows, tasks.examples(TASK, 'validation'), strict=True):
    assert row['inputs']['inputs_pretokenized'] == text
    assert row['inputs']['targets_pretokenized'] == label
    assert isinstance(row['prediction'], str)


def test_eight_devices_predict_what_one_does(prompt, predictions, tmp_path):
  _, rows = _infer(
      prompt, tmp_path, 'predict', '--gin.PjitPartitioner.num_partitions=4')
  assert rows == predictions[1]


def test_predictions_depend_on_the_prompt(predictions, tmp_path):
  other = tmp_path / 'prompt.npy'
  np.save(other, np.full((10, 128), 3.0, np.float32))
  _, rows = _infer(other, tmp_path, 'predict')
  assert rows != predictions[1]


def test_predict_with_aux_adds_scores(prompt, predictions, tmp_path):
  _, rows = _infer(prompt, tmp_path, 'predict_with_aux')
  assert [row['prediction'] for row in rows] == [
      row['prediction'] for row in predictions[1]]
  assert all(row['aux']['scores'] <= 0 for row in rows)


def test_all_decodes_are_written_with_their_scores_and_tokens(
    prompt, predictions, tmp_path):
  sampling = 'models.EncoderDecoderModel.predict_batch_with_aux'
  _, rows = _infer(
      prompt, tmp_path, 'predict_with_aux',
      '--gin_file=models/decoding/beam_search.gin',
      f'--gin.{sampling}.num_decodes=3',
      f'--gin.{sampling}.return_all_decodes=True',
      '--gin.write_inferences_to_file.output_ids=True')
  vocabulary = tasks.vocabulary()
  assert len(rows) == SIZE
  for row in rows:
    scores = row['aux']['scores']
    assert len(scores) == 3 and scores == sorted(scores)
    assert all(0 not in tokens for tokens in row['prediction_tokens'])
    assert row['prediction'] == [
        vocabulary.decode(tokens) for tokens in row['prediction_tokens']]


def test_all_inputs_are_written_on_request(prompt, predictions, tmp_path):
  write = '--gin.write_inferences_to_file'
  _, rows = _infer(prompt, tmp_path / 'all', 'predict',
                   f'{write}.include_all_inputs=True')
  _, some = _infer(prompt, tmp_path / 'some', 'predict',
                   f"{write}.input_fields_to_include=['targets']")
  for row, few, plain in zip(rows, some, predictions[1], strict=True):
    assert row['inputs'].keys() == {
        'inputs', 'targets', 'inputs_pretokenized', 'targets_pretokenized'}
    assert few == plain | {'inputs': {'targets': row['inputs']['targets']}}
  with pytest.raises(ValueError, match=r"'none'; the examples have \['inputs"):
    _infer(prompt, tmp_path / 'none', 'predict',
           f"{write}.input_fields_to_include=['none']")


def test_job_shards_hold_every_row_once(prompt, predictions, tmp_path):
  shards = []
  for shard in range(3):
    path, rows = _infer(
        prompt, tmp_path, 'predict', f'--shard_id={shard}',
        '--gin.infer.num_shards=3')
    assert path.endswith(f'predict.jsonl-0000{shard}-of-00003')
    shards.append(rows)
    assert (tmp_path / 'config.gin').exists()
  assert sorted(map(json.dumps, sum(shards, []))) == sorted(
      map(json.dumps, predictions[1]))
  with pytest.raises(ValueError, match='shard from 0 to 2'):
    _infer(prompt, tmp_path, 'predict', '--shard_id=3',
           '--gin.infer.num_shards=3')


def test_score_is_negative_and_follows_the_targets(prompt, tmp_path):
  _, rows = _infer(prompt, tmp_path, 'score')
  assert len(rows) == SIZE
  assert all(row['score'] < 0 for row in rows)
  assert len({row['score'] for row in rows}) > SIZE / 2


def test_every_batch_is_sampled_with_a_key_of_its_own(prompt, tmp_path):
  # The same text in every row of every batch: only the keys differ.
  batches = 3
  model, rows = _sampling_model(), 32
  text = np.zeros((batches * rows, 8), np.int32)
  text[:, :3] = [7, 8, 1]
  dataset = tf.data.Dataset.from_tensor_slices({
      'encoder_input_tokens': text,
      'decoder_input_tokens': np.zeros((len(text), 4), np.int32)}).enumerate()
  partitioner = partitioning.PjitPartitioner(1)
  runner = evaluation.InferenceRunner(model, partitioner, rows)
  state = inference_state.Restorer(
      model, partitioner,
      checkpoints.RestoreCheckpointConfig(path=files.checkpoint()),
      {'encoder_input_tokens': (1, 2), 'decoder_input_tokens': (1, 2),
       'decoder_target_tokens': (1, 2)}).state(files.checkpoint())
  drawn = np.stack([row for _, row in runner.run('predict', state, dataset)])
  first, second, third = np.split(drawn, batches)
  assert (first != second).any() and (second != third).any()
  again = np.stack([row for _, row in runner.run('predict', state, dataset)])
  np.testing.assert_array_equal(drawn, again)


def _sampling_model():
  """The demo's model without a prompt, sampling hot."""
  config = network.T5Config(
      vocab_size=1024, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256,
      num_encoder_layers=3, num_decoder_layers=3, dropout_rate=0.0,
      mlp_activations=('gelu', 'linear'))
  vocabulary = tasks.vocabulary()
  return models.EncoderDecoderModel(
      network.Transformer(config), vocabulary, vocabulary,
      optimizers.adamw(learning_rate=0.1), functools.partial(
          decoding.temperature_sample, temperature=3.0, topk=0))


def test_an_uneven_batch_is_refused_before_anything_is_written(
    prompt, tmp_path):
  with pytest.raises(ValueError, match='BATCH_SIZE 12'):
    _infer(prompt, tmp_path / 'out', 'predict',
           '--gin.utils.DatasetConfig.batch_size=12')
  assert not (tmp_path / 'out').exists()


def test_inputs_of_a_file_with_labels_are_ranked(prompt, tmp_path, capsys):
  lines = [text for text, _ in tasks.examples(TASK, 'validation')[:21]]
  lines[3] += 20 * ' the film'
  file = tmp_path / 'questions.txt'
  file.write_text('\n'.join(lines))
  labels = ['no', 'yes', 'the film']
  ranked = program.run_command(infer.infer, [
      *FROM_FILE, f'--gin.PROMPT_FILE={prompt}', f'--gin.INPUT_FILE={file}',
      f'--gin.LABELS={labels}', f'--gin.INFER_OUTPUT_DIR={tmp_path}',
      # 8 rows are no whole number of examples of three labels.
      '--gin.utils.DatasetConfig.batch_size=8',
      '--gin.infer.checkpoint_period=1'])
  assert ranked == [f'{tmp_path}/questions-predict.jsonl-00000-of-00001']
  assert re.search(r'note: 5 % of the first 63 examples of questions .*'
                   r"\['inputs'\] = 32 and are cut", capsys.readouterr().out)
  rows = _rows(ranked[0])
  pairs = tmp_path / 'pairs.jsonl'
  pairs.write_text(''.join(
      json.dumps({'q': line, 'a': label}) + '\n'
      for line in lines for label in labels))
  (scored,) = program.run_command(infer.infer, [
      *FROM_FILE, f'--gin.PROMPT_FILE={prompt}', f'--gin.INPUT_FILE={pairs}',
      '--gin.INPUT_FIELD=q', '--gin.TARGET_FIELD=a',
      f'--gin.INFER_OUTPUT_DIR={tmp_path}', "--gin.infer.mode='score'"])
  scores = np.reshape([row['score'] for row in _rows(scored)], (21, 3))
  for row, line, expected in zip(rows, lines, scores, strict=True):
    assert row['inputs'] == {'inputs_pretokenized': line}
    np.testing.assert_allclose(
        [row['scores'][label] for label in labels], expected, rtol=1e-5)
    assert row['label'] == labels[int(np.argmax(expected))]


def test_inputs_without_targets_cannot_be_scored(prompt, tmp_path):
  file = tmp_path / 'a.txt'
  file.write_text('one\n')
  with pytest.raises(ValueError, match='TARGET_FIELD'):
    program.run_command(infer.infer, [
        *FROM_FILE, f'--gin.PROMPT_FILE={prompt}', f'--gin.INPUT_FILE={file}',
        f'--gin.INFER_OUTPUT_DIR={tmp_path / "out"}',
        "--gin.infer.mode='score'"])
  assert not (tmp_path / 'out').exists()


def test_an_unknown_mode_is_refused(prompt, tmp_path):
  with pytest.raises(ValueError, match="infer.mode is 'guess'"):
    _infer(prompt, tmp_path / 'out', 'guess')
  assert not (tmp_path / 'out').exists()


def test_evaluation_is_the_accuracy_of_the_predictions(
    prompt, predictions, tmp_path):
  results = program.run_command(eval_script.evaluate, [
      '--gin_file=models/demo_prompt.gin',
      '--gin_file=models/decoding/greedy.gin',
      '--gin_file=runs/prompt_eval.gin', f'--gin.PROMPT_FILE={prompt}',
      f'--gin.EVAL_OUTPUT_DIR={tmp_path}', *COMMON])
  right = [row['prediction'] == row['inputs']['targets_pretokenized']
           for row in predictions[1]]
  assert results == {TASK.name: {'accuracy': 100 * np.mean(right)}}
  assert (tmp_path / 'config.gin').exists()
  file = tmp_path / 'inference_eval' / f'{TASK.name}-metrics.jsonl'
  (row,) = [json.loads(line) for line in file.read_text().splitlines()]
  assert row['accuracy'] == results[TASK.name]['accuracy']


def test_a_prompt_of_another_length_is_refused(tmp_path):
  short = tmp_path / 'prompt.npy'
  np.save(short, np.zeros((3, 128), np.float32))
  with pytest.raises(ValueError, match=r'\[3, 128\].*\[10, 128\]'):
    _infer(short, tmp_path / 'out', 'predict')
  assert not (tmp_path / 'out').exists()
