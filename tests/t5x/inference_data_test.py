import dataclasses

import numpy as np
from prompt_tuning.demo import tasks
import pytest
import seqio
from t5x import datasets
from t5x import inference_data
import tensorflow as tf

TASK = tasks.SOURCES[0]
CONFIG = datasets.DatasetConfig(
    TASK.name, {'inputs': 32, 'targets': 4}, 'validation', 8, False, 0)


def _examples(shard_id=0, num_shards=1, config=CONFIG):
  (found,) = inference_data.inference_examples(
      config, seqio.EncDecFeatureConverter(pack=False), shard_id, num_shards)
  return found


@pytest.fixture
def five():
  """A task of five examples."""
  ids = np.arange(2, 7, dtype=np.int32)[:, None]
  feature = seqio.Feature(seqio.PassThroughVocabulary(64, eos_id=1))
  seqio.TaskRegistry.add(
      'five',
      source=seqio.FunctionDataSource(
          lambda split, shuffle_files, seed=None: (
              tf.data.Dataset.from_tensor_slices(
                  {'inputs': ids, 'targets': ids})),
          splits=('validation',)),
      preprocessors=[], output_features={'inputs': feature, 'targets': feature})
  yield dataclasses.replace(CONFIG, mixture_or_task_name='five')
  seqio.TaskRegistry.remove('five')


def test_examples_and_features_are_in_step():
  pairs = list(_examples().read(0))
  assert len(pairs) == 100
  for (example, features), (text, label) in zip(
      pairs, tasks.examples(TASK, 'validation'), strict=True):
    assert example['inputs_pretokenized'].decode() == text
    assert example['targets_pretokenized'].decode() == label
    tokens = features['encoder_input_tokens']
    assert tokens.shape == (32,)
    np.testing.assert_array_equal(
        tokens[:len(example['inputs'])], example['inputs'])


def test_reading_goes_on_where_it_is_told():
  whole, rest = list(_examples().read(0)), list(_examples().read(93))
  assert len(rest) == 7
  for (_, a), (_, b) in zip(whole[93:], rest, strict=True):
    np.testing.assert_array_equal(
        a['encoder_input_tokens'], b['encoder_input_tokens'])


# As many shards as examples at most: each has one then.
@pytest.mark.parametrize('num_shards', [1, 3, 5])
def test_shards_hold_every_example_once(five, num_shards):
  found = [
      [int(example['inputs'][0]) for example, _ in _examples(
          shard, num_shards, five).read(0)] for shard in range(num_shards)]
  assert sorted(sum(found, [])) == [2, 3, 4, 5, 6]
  assert {len(rows) for rows in found} <= {5 // num_shards, 5 // num_shards + 1}


def test_feature_shapes_are_those_of_the_features():
  examples = _examples()
  _, features = next(examples.read(0))
  assert examples.feature_shapes() == {
      name: (x.shape, x.dtype.type) for name, x in features.items()}


def test_the_last_row_fills_a_batch_up():
  rows = [{'x': np.array([i, i])} for i in range(3)]
  np.testing.assert_array_equal(
      inference_data.padded(rows, 5)['x'],
      [[0, 0], [1, 1], [2, 2], [2, 2], [2, 2]])
