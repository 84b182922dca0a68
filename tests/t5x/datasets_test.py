import dataclasses
import itertools
import time

import numpy as np
from prompt_tuning.demo import tasks
import pytest
import seqio
from t5x import datasets

CONFIG = datasets.DatasetConfig(
    mixture_or_task_name='demo_film_sentiment',
    task_feature_lengths={'inputs': 32, 'targets': 4}, split='train',
    batch_size=8, shuffle=True, seed=None,
    module='prompt_tuning.demo.tasks')


def _converter():
  return datasets.feature_converter('EncDecFeatureConverter')


CONVERTER_CLS = datasets.feature_converter_cls('EncDecFeatureConverter')


def _batches(count, skip=0, config=CONFIG, seed=0, shard=(0, 1)):
  if config.seed is None:
    config = dataclasses.replace(config, seed=seed)
  dataset = datasets.get_dataset(config, *shard, CONVERTER_CLS)
  return list(itertools.islice(datasets.numpy_batches(dataset, skip), count))


def _same(first, second):
  return all(np.array_equal(a[name], b[name])
             for a, b in zip(first, second, strict=True) for name in a)


def test_batches_have_the_models_features():
  (batch,) = _batches(1)
  assert {name: x.shape for name, x in batch.items()} == (
      datasets.model_feature_shapes(CONFIG, _converter()))
  # Targets are shifted right to become the decoder's inputs, from 0.
  np.testing.assert_array_equal(batch['decoder_input_tokens'][:, 0], 0)
  np.testing.assert_array_equal(
      batch['decoder_input_tokens'][:, 1:],
      batch['decoder_target_tokens'][:, :-1])


@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('cls', [
    'EncDecFeatureConverter', 'LMFeatureConverter', 'DecoderFeatureConverter'])
def test_batches_are_known_before_any_is_read(cls, pack):
  config = dataclasses.replace(CONFIG, pack=pack, seed=0)
  converter = datasets.feature_converter(cls, pack)
  if cls == 'LMFeatureConverter':
    config = dataclasses.replace(config, task_feature_lengths={'targets': 4})
  dataset = datasets.get_dataset(
      config, 0, 1, datasets.feature_converter_cls(cls))
  shapes = datasets.model_feature_shapes(config, converter)
  types = datasets.model_feature_types(converter)
  assert {name: (spec.shape, spec.dtype.as_numpy_dtype)
          for name, spec in dataset.element_spec.items()} == {
              name: (shapes[name], types[name]) for name in shapes}


def test_order_depends_on_the_seed_alone():
  assert _same(_batches(3), _batches(3))
  assert not _same(_batches(3), _batches(3, seed=1))


def test_the_configurations_seed_wins():
  config = dataclasses.replace(CONFIG, seed=42)
  assert _same(_batches(2, config=config, seed=0),
               _batches(2, config=config, seed=1))


def test_skipping_gives_exactly_the_following_batches():
  # Past the end of the 2,000 examples, where the order is drawn anew.
  assert _same(_batches(3, skip=260), _batches(263)[260:])


def test_epochs_differ_in_order_but_not_in_content():
  config = dataclasses.replace(
      CONFIG, mixture_or_task_name='demo_restaurant_sentiment')
  rows = np.concatenate([b['encoder_input_tokens']
                         for b in _batches(8, config=config)])
  first, second = rows[:32], rows[32:]
  assert not np.array_equal(first, second)


def test_shards_cut_the_examples():
  whole = {row.tobytes() for b in _batches(250, config=dataclasses.replace(
      CONFIG, shuffle=False)) for row in b['encoder_input_tokens']}
  halves = [
      {row.tobytes() for b in _batches(
          250, config=dataclasses.replace(CONFIG, shuffle=False),
          shard=(i, 2)) for row in b['encoder_input_tokens']}
      for i in range(2)]
  assert halves[0] | halves[1] == whole
  assert not halves[0] & halves[1]
  (batch,) = _batches(1, shard=(0, 2))
  assert batch['encoder_input_tokens'].shape == (4, 32)


@pytest.mark.parametrize('changes,match', [
    ({'mixture_or_task_name': 'demo_film_sentimnt'},
     "'demo_film_sentimnt' is not registered.*'demo_film_sentiment'"),
    ({'split': 'dev'}, r"no split 'dev'.*'test', 'train', 'validation'"),
    ({'task_feature_lengths': None}, 'TASK_FEATURE_LENGTHS'),
    ({'use_cached': True}, 'USE_CACHED_TASKS'),
    ({'module': 'no.such.module'}, "'no.such.module' cannot be imported"),
])
def test_bad_configurations_are_refused(changes, match):
  with pytest.raises(datasets.DatasetError, match=match):
    _batches(1, config=dataclasses.replace(CONFIG, **changes))


def test_custom_packing_is_refused():
  with pytest.raises(datasets.DatasetError, match='tensor2tensor'):
    dataclasses.replace(CONFIG, use_custom_packing_ops=True)


def test_other_vocabularies_are_refused():
  mine, other = tasks.vocabulary(), seqio.ByteVocabulary()
  datasets.verify_matching_vocabs(CONFIG, mine, mine)
  with pytest.raises(datasets.DatasetError, match='inputs'):
    datasets.verify_matching_vocabs(CONFIG, other, mine)
  with pytest.raises(datasets.DatasetError, match='targets'):
    datasets.verify_matching_vocabs(CONFIG, mine, other)


def test_training_evaluation_repeats_short_sets():
  config = dataclasses.replace(
      CONFIG, split='validation', shuffle=False, batch_size=16)
  sets = datasets.get_training_eval_datasets(
      config, 0, 1, 20, CONVERTER_CLS)
  assert list(sets) == ['demo_film_sentiment']
  batches = list(datasets.numpy_batches(sets['demo_film_sentiment']))
  assert len(batches) == 20  # 320 rows of 100 examples.
  again = list(datasets.numpy_batches(sets['demo_film_sentiment']))
  assert _same(batches, again)


def test_without_steps_every_example_is_evaluated_once():
  config = dataclasses.replace(
      CONFIG, split='validation', shuffle=False, batch_size=16)
  (found,), (rows,) = (datasets.get_training_eval_datasets(
      dataclasses.replace(config, batch_size=size), 0, 1, steps,
      CONVERTER_CLS).values() for size, steps in ((16, None), (100, 1)))
  batches = list(datasets.numpy_batches(found))
  assert len(batches) == 7  # 112 rows for 100 examples.
  (everything,) = datasets.numpy_batches(rows)
  for name, wanted in everything.items():
    joined = np.concatenate([batch[name] for batch in batches])
    np.testing.assert_array_equal(joined[:100], wanted)
    assert joined.shape == (112, *wanted.shape[1:])
    assert joined.dtype == wanted.dtype and not joined[100:].any()


def test_mixtures_are_evaluated_by_task_and_together():
  seqio.MixtureRegistry.add(
      'datasets_test_mixture',
      ['demo_film_sentiment', 'demo_hotel_sentiment'], default_rate=1.0)
  try:
    sets = datasets.get_training_eval_datasets(
        dataclasses.replace(CONFIG, split='validation', shuffle=False,
                            mixture_or_task_name='datasets_test_mixture'),
        0, 1, 2, CONVERTER_CLS)
    assert sorted(sets) == ['datasets_test_mixture', 'demo_film_sentiment',
                            'demo_hotel_sentiment']
  finally:
    seqio.MixtureRegistry.remove('datasets_test_mixture')


def test_prefetch_keeps_the_order_and_runs_ahead():
  done = []

  def transform(x):
    done.append(x)
    return 10 * x

  stream = datasets.prefetch(iter(range(6)), transform, depth=3)
  deadline = time.monotonic() + 10
  while len(done) < 3 and time.monotonic() < deadline:
    time.sleep(0.01)
  assert done == [0, 1, 2]  # Prepared before anything was asked for.
  assert next(stream) == 0
  assert list(stream) == [10, 20, 30, 40, 50]


def test_prefetch_raises_the_threads_error():
  def transform(x):
    if x == 2:
      raise KeyError('broken row')
    return x

  stream = datasets.prefetch(iter(range(5)), transform)
  assert [next(stream), next(stream)] == [0, 1]
  with pytest.raises(KeyError, match='broken row'):
    next(stream)
