"""Preprocessors of tokens: sentinels, noise, drawn targets."""

import collections

import numpy as np
from prompt_tuning.data import noise
from prompt_tuning.data import preprocessors
from prompt_tuning.demo import tasks
from prompt_tuning.recycling.data import preprocessors as recycling
import pytest
import seqio
import tensorflow as tf

LENGTHS = {'inputs': 21, 'targets': 99}


class Sentinels(seqio.PassThroughVocabulary):
  """Ids, of which the last hundred are sentinels."""

  @property
  def extra_ids(self):
    return 100


def features(vocabulary=None, add_eos=True):
  feature = seqio.Feature(vocabulary or Sentinels(1000), add_eos=add_eos)
  return {'inputs': feature, 'targets': feature}


def documents(*sizes):
  """Documents of counted tokens, 10, 11, and so on."""
  return tf.data.Dataset.from_generator(
      lambda: ({'inputs': [], 'targets': range(10, 10 + n)} for n in sizes),
      output_signature={name: tf.TensorSpec([None], tf.int32)
                        for name in ('inputs', 'targets')})


def run(ds, seed=0):
  with seqio.map_seed_manager(seed):
    return [{k: v.tolist() for k, v in x.items()}
            for x in ds().as_numpy_iterator()]


@pytest.mark.parametrize('offset', [0, 7])
def test_sentinels_count_from_the_end_of_the_vocabulary(offset):
  vocabulary = tasks.vocabulary()
  ds = tf.data.Dataset.from_tensors({'inputs': [5, 6], 'targets': [7]})
  found, = preprocessors.add_sentinel_to_beginning(
      ds, features(vocabulary), field='inputs', offset=offset
  ).as_numpy_iterator()
  assert found['inputs'].tolist() == [vocabulary.vocab_size - 1 - offset, 5, 6]
  assert vocabulary.tokenizer.id_to_piece(
      int(found['inputs'][0])).endswith(f'<extra_id_{offset}>')
  assert found['targets'].tolist() == [7]


def test_targets_begin_with_the_first_sentinel():
  ds = tf.data.Dataset.from_tensors({'inputs': [5, 6], 'targets': [7]})
  found, = preprocessors.add_sentinel_to_targets(
      ds, features()).as_numpy_iterator()
  assert found['targets'].tolist() == [1099, 7]
  assert found['inputs'].tolist() == [5, 6]


NOISE = (noise.text_infilling, noise.token_deletion, noise.prefix_lm)


@pytest.mark.parametrize('make', NOISE)
def test_text_is_cut_and_nothing_is_lost(make):
  whole = run(lambda: make(documents(50, 0, 1, 20), LENGTHS, features()))
  if make is noise.prefix_lm:
    parts = [x['inputs'] + x['targets'] for x in whole]
  else:
    parts = [x['targets'] for x in whole]
  # An end token is still to come.
  assert [len(part) for part in parts] == [20, 20, 10, 1, 20]
  assert parts[0] + parts[1] + parts[2] == list(range(10, 60))
  assert {frozenset(x) for x in whole} == {frozenset(['inputs', 'targets'])}
  assert len(run(lambda: make(
      documents(21), LENGTHS, features(add_eos=False)))) == 1


@pytest.mark.parametrize('make', NOISE)
def test_the_seed_of_the_task_decides(make):
  def once(seed):
    return run(
        lambda: make(documents(*[60] * 5), {'inputs': 61}, features()), seed)
  assert once(1) == once(1) != once(2)
  assert len({tuple(x['inputs']) for x in once(1)}) > 3


@pytest.mark.parametrize('make', NOISE)
def test_noise_needs_a_length(make):
  with pytest.raises(ValueError, match='length of inputs'):
    make(documents(5), None, features())


def test_spans_become_sentinels():
  found = run(lambda: noise.text_infilling(
      documents(*[60] * 40), {'inputs': 61}, features()))
  assert len({tuple(x['inputs']) for x in found}) > 30
  for x in found:
    rebuilt, rest, sentinels = [], x['targets'], []
    for token in x['inputs']:
      if token < 1000:
        while rest[0] != token:
          rebuilt[-1].append(rest[0])
          rest = rest[1:]
        rest = rest[1:]
      else:
        sentinels.append(token)
        rebuilt.append([])
    rebuilt[-1].extend(rest)
    # 15 % of 60 tokens in spans of three.
    assert sentinels == [1099, 1098, 1097]
    assert sum(map(len, rebuilt)) == 9 and all(rebuilt)
    assert x['inputs'][0] == 10


def test_more_spans_than_sentinels_are_an_error():
  with pytest.raises(ValueError, match='make 150 spans.*has 100 sentinels'):
    noise.text_infilling(documents(9), {'inputs': 3001}, features())


@pytest.mark.parametrize('length, density, span, expected', [
    (1, 0.15, 3, (0, 0)), (2, 0.15, 3, (1, 1)), (10, 0.15, 3, (2, 1)),
    (100, 0.15, 3, (15, 5)), (100, 0.5, 1, (50, 50)), (10, 0.9, 1, (9, 1)),
    (10, 1.0, 3, (9, 1)), (40, 0.3, 4, (12, 3))])
def test_numbers_of_noise_tokens_and_spans(length, density, span, expected):
  for seed in range(20):
    mask = noise.span_mask(
        tf.constant(length), tf.constant([[seed, 1], [seed, 2]]),
        density, span).numpy()
    begins = mask & ~np.pad(mask, (1, 0))[:-1]
    assert mask.shape == (length,) and not mask[0]
    assert (mask.sum(), begins.sum()) == expected


def test_lengths_of_spans_are_all_alike_likely():
  masks = collections.Counter(
      tuple(noise.span_mask(
          tf.constant(6), tf.constant([[seed, 1], [seed, 2]]), 0.5, 1.5
      ).numpy()) for seed in range(200))
  # Three kept and three noisy tokens in two spans each: 2 x 2 ways.
  assert len(masks) == 4
  assert all(30 < count < 70 for count in masks.values())


def test_tokens_are_deleted_with_their_chance():
  found = run(lambda: noise.token_deletion(
      documents(20_000), {'inputs': 20_001}, features(), noise_density=0.3))
  kept = found[0]['inputs']
  assert len(kept) == pytest.approx(14_000, abs=300)
  assert kept == sorted(kept) and set(kept) < set(found[0]['targets'])


def test_prefixes_are_of_any_length():
  found = run(lambda: noise.prefix_lm(
      documents(*[5] * 400), LENGTHS, features()))
  counts = collections.Counter(len(x['inputs']) for x in found)
  assert set(counts) == {1, 2, 3, 4} and min(counts.values()) > 70


def test_long_documents_give_one_stretch():
  found = run(lambda: noise.token_deletion(
      documents(noise.MAX_DOCUMENT + 10), {'inputs': 70_001}, features()))
  assert len(found) == 1
  assert len(found[0]['targets']) in (10, noise.MAX_DOCUMENT)


def test_published_spellings():
  for make in NOISE:
    assert getattr(preprocessors, make.__name__) is make


def drawn(count=4000, seed=5, task_seed=0, **options):
  vocabulary = tasks.vocabulary()
  ds = tf.data.Dataset.from_tensors(
      {'inputs': [1], 'targets': [1, 2, 3]}).repeat(count)
  with seqio.map_seed_manager(task_seed):
    ds = recycling.random_targets(
        ds, features(vocabulary), None, targets=['good', 'bad film'],
        seed=seed, **options)
  return [vocabulary.decode(x['targets'].tolist())
          for x in ds.as_numpy_iterator()]


@pytest.mark.parametrize('probs, share', [
    (None, 0.5), ([0.2], 0.2), ([0.7, 0.3], 0.7)])
def test_targets_are_drawn(probs, share):
  found = drawn(probs=probs)
  assert set(found) == {'good', 'bad film'}
  assert found.count('good') / 4000 == pytest.approx(share, abs=0.03)


def test_targets_are_drawn_by_a_seed():
  assert drawn(99, seed=3) == drawn(99, seed=3) != drawn(99, seed=4)
  assert drawn(99, seed=0) == drawn(99, seed=0, task_seed=9)
  # Without one, by the task's.
  assert drawn(99, seed=None) == drawn(99, seed=None)
  assert drawn(99, seed=None) != drawn(99, seed=None, task_seed=9)


@pytest.mark.parametrize('probs', [
    [0.5, 0.6], [1.2], [1.0], [0.0, 1.0], [1.5, -0.5], [0.2, 0.3, 0.5], []])
def test_wrong_probabilities_are_an_error(probs):
  with pytest.raises(ValueError, match='expected one for each'):
    drawn(1, probs=probs)
