import collections

import numpy as np
from prompt_tuning.data import few_shot
from prompt_tuning.data import metrics
from prompt_tuning.demo import tasks
import pytest
import seqio
from t5x import datasets
import tensorflow as tf

LABELS = ([0] * 6 + [1] * 3 + [-1]) * 10
NAMES = ('few_shot_test_task', 'few_shot_test_other')


def _rows(split, shuffle_files, seed=None):
  count = {'train': len(LABELS), 'validation': 7}[split]
  return tf.data.Dataset.from_tensor_slices({
      'inputs': [f'{split} {i}' for i in range(count)],
      'targets': ['yes'] * count, 'label': LABELS[:count],
      'list': [[1, 2]] * count})


@pytest.fixture(autouse=True)
def registered():
  before = [set(r.names()) for r in (seqio.TaskRegistry, seqio.MixtureRegistry)]
  for name, splits in zip(
      NAMES, (('train', 'validation'), ('validation',)), strict=True):
    seqio.TaskRegistry.add(
        name, source=seqio.FunctionDataSource(_rows, splits=splits),
        preprocessors=[seqio.preprocessors.tokenize],
        output_features=tasks.features(), metric_fns=[metrics.accuracy])
  seqio.MixtureRegistry.add('few_shot_test_mixture', [
      (NAMES[0], 3.0), (NAMES[1], 1.0)])
  yield
  for registry, names in zip(
      (seqio.TaskRegistry, seqio.MixtureRegistry), before, strict=True):
    for name in set(registry.names()) - names:
      registry.remove(name)


def _read(name, split='train', **options):
  return list(seqio.get_mixture_or_task(name).get_dataset(
      None, split, **({'shuffle': False} | options)).as_numpy_iterator())


def _texts(name, **options):
  return [row['inputs_pretokenized'].decode() for row in _read(name, **options)]


def test_every_class_has_its_examples():
  name = few_shot.task(NAMES[0], 5, class_field='label', seed=3)
  assert name == 'few_shot_test_task_5_per_label_seed3'
  rows = _read(name)
  assert collections.Counter(int(row['label']) for row in rows) == {0: 5, 1: 5}
  everything = {row['inputs_pretokenized']: row for row in _read(NAMES[0])}
  for row in rows:
    whole = everything[row['inputs_pretokenized']]
    assert row.keys() == whole.keys()
    for field, value in whole.items():
      np.testing.assert_array_equal(row[field], value)
      assert np.asarray(row[field]).dtype == np.asarray(value).dtype
  assert seqio.TaskRegistry.get(name).metric_fns == [metrics.accuracy]


def test_the_draw_follows_the_seed_alone():
  draws = {seed: _texts(few_shot.task(NAMES[0], 8, seed=seed))
           for seed in range(4)}
  assert len({tuple(draw) for draw in draws.values()}) == 4
  for seed, draw in draws.items():
    assert len(set(draw)) == 8
    name = few_shot.task(NAMES[0], 8, seed=seed)
    assert name == f'few_shot_test_task_8_examples_seed{seed}'
    assert _texts(name) == draw
    seqio.TaskRegistry.remove(name)
    again = few_shot.task(NAMES[0], 8, seed=seed)
    assert sorted(_texts(again, shuffle=True, seed=5)) == sorted(draw)


def test_every_example_is_drawn_as_often():
  counts = collections.Counter()
  source = seqio.TaskRegistry.get(NAMES[0]).source
  for seed in range(300):
    few = few_shot.FewShotSource(
        source, 'train', 10, class_field=None, seed=seed)
    counts.update(row['inputs'] for row in few._drawn[0])
  found = np.array([counts[f'train {i}'.encode()] for i in range(100)])
  assert found.sum() == 3000
  # Chi-square of 99 degrees of freedom; 160 is beyond its 99.99th percentile.
  # A draw without replacement varies by 0.9 of what that assumes.
  assert ((found - 30) ** 2 / (30 * 0.9)).sum() < 160


def test_other_splits_and_tasks_without_the_split_stay_whole():
  name = few_shot.task('few_shot_test_mixture', 4)
  mixture = seqio.MixtureRegistry.get(name)
  small, other = (f'{NAMES[0]}_4_examples_seed0', NAMES[1])
  assert {t.name: mixture.get_rate(t) for t in mixture.tasks} == {
      small: 3.0, other: 1.0}
  assert len(_read(small)) == 4
  assert _texts(small, split='validation') == _texts(
      NAMES[0], split='validation')
  task = few_shot.task(NAMES[1], 2, split='validation')
  assert len(_read(task, split='validation')) == 2


@pytest.mark.parametrize('arguments,message', [
    ({'count': 0}, 'count is 0'),
    ({'count': 31, 'class_field': 'label'},
     "count is 31, but the split 'train' has 30 examples of class 1"),
    ({'count': 101}, 'has 100 examples in all'),
    ({'count': 1, 'class_field': 'class'},
     r"class_field is 'class'.*'inputs', 'label'"),
    ({'count': 1, 'class_field': 'list'}, r"'list' holds int32\[2\]"),
    ({'count': 1, 'split': 'test'}, r"no split 'test'.*'train', 'validation'"),
    ({'count': 1, 'mixture_or_task_name': 'few_shot_test_tsk'},
     'Nearest: .few_shot_test_task'),
])
def test_what_cannot_be_drawn_is_refused(arguments, message):
  with pytest.raises(datasets.DatasetError, match=message):
    _read(few_shot.task(**({'mixture_or_task_name': NAMES[0]} | arguments)))
