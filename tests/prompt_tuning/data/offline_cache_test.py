import json

import numpy as np
from prompt_tuning.data import offline_cache
from prompt_tuning.demo import tasks
from prompt_tuning.scripts import cache_tasks
import pytest
import seqio
from t5x import datasets
import tensorflow as tf

TEXTS = ['the film was good', 'the hotel', 'it', 'a b c d e f g'] * 3
SIZES = {'train': 12, 'validation': 5}
NAME = 'offline_cache_test:task'


def _rows(split, shuffle_files, seed=None):
  count = SIZES[split]
  return tf.data.Dataset.from_tensor_slices({
      'inputs': TEXTS[:count], 'targets': ['yes', 'no', 'yes'][:1] * count,
      'idx': [[i, 2 * i] for i in range(count)], 'share': [0.5] * count,
      'right': [True] * count})


def _drawn(dataset):
  """What a run must do again in every epoch."""
  return dataset.map(lambda x: {**x, 'after': tf.constant(1)})


def _preprocessors(placeholder):
  return [seqio.preprocessors.tokenize, *placeholder, _drawn,
          seqio.preprocessors.append_eos_after_trim]


@pytest.fixture
def task():
  seqio.TaskRegistry.add(
      NAME,
      source=seqio.FunctionDataSource(_rows, splits=tuple(SIZES)),
      preprocessors=_preprocessors([seqio.CacheDatasetPlaceholder()]),
      output_features=tasks.features())
  yield seqio.TaskRegistry.get(NAME)
  seqio.TaskRegistry.remove(NAME)
  seqio.set_global_cache_dirs([])


def _read(task, split, use_cached):
  return sorted((
      {name: np.asarray(value) for name, value in row.items()}
      for row in task.get_dataset(
          {'inputs': 6, 'targets': 4}, split, use_cached=use_cached,
          shuffle=False).as_numpy_iterator()), key=lambda row: row['idx'][0])


@pytest.mark.parametrize('num_shards', [1, 4, 20])
def test_seqio_reads_what_it_would_have_made(task, tmp_path, num_shards):
  offline_cache.write(task, str(tmp_path), num_shards=num_shards)
  seqio.add_global_cache_dirs([str(tmp_path)])
  for split, count in SIZES.items():
    cached, fresh = (_read(task, split, cache) for cache in (True, False))
    assert len(cached) == len(fresh) == count
    for ours, wanted in zip(cached, fresh, strict=True):
      assert ours.keys() == wanted.keys()
      for name, value in wanted.items():
        assert ours[name].dtype == value.dtype, name
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert task.get_cached_stats(split)['examples'] == count


def test_figures_of_a_split(task, tmp_path):
  folder = offline_cache.write(task, str(tmp_path), splits=['validation'])
  assert folder == str(tmp_path / 'offline_cache_test' / 'task')
  with open(f'{folder}/stats.validation.json') as file:
    stats = json.load(file)
  lengths = [len(tasks.vocabulary().encode(text)) for text in TEXTS[:5]]
  assert stats['inputs_tokens'] == sum(lengths)
  assert stats['inputs_max_tokens'] == max(lengths)
  assert 'idx_tokens' not in stats and stats['examples'] == 5


def test_the_tool_writes_a_cache_once(task, tmp_path, capsys):
  arguments = [f'--tasks={NAME}', f'--output_cache_dir={tmp_path}']
  assert cache_tasks.main(arguments) == 0
  assert capsys.readouterr().out == f'{tmp_path}/offline_cache_test/task\n'
  before = {path: path.read_bytes() for path in tmp_path.rglob('*.*')
            if path.is_file()}
  assert cache_tasks.main(arguments) == 2
  assert 'is there already' in capsys.readouterr().err
  assert before == {path: path.read_bytes() for path in before}
  assert cache_tasks.main([
      '--tasks=offline_cache_tst', f'--output_cache_dir={tmp_path}']) == 2
  assert NAME in capsys.readouterr().err


def test_what_cannot_be_cached_is_refused_and_leaves_nothing(task, tmp_path):
  def refused(message, made=task, **options):
    with pytest.raises(datasets.DatasetError, match=message):
      offline_cache.write(made, str(tmp_path), **options)

  refused('no CacheDatasetPlaceholder', seqio.Task(
      'plain', task.source, task.output_features, _preprocessors([])))
  refused("no split 'test'.*'train', 'validation'", splits=['test'])
  refused('num_shards is 0', num_shards=0)
  refused("no example in the split 'train'", seqio.Task(
      'empty', seqio.FunctionDataSource(
          lambda split, shuffle_files, seed=None: _rows('train', False).take(0),
          splits=['train']),
      task.output_features,
      _preprocessors([seqio.CacheDatasetPlaceholder()])))
  assert not list(tmp_path.iterdir())
