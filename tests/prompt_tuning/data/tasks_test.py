"""Every task on tiny data: it builds, and its own answers get full marks.

The data is written in TFDS's format, with the features that TFDS declares; see
`tiny_tfds`. Tokens are bytes, so that every text can be read back.
"""

import dataclasses
import pathlib

from prompt_tuning.data import features
from prompt_tuning.data import tasks
from prompt_tuning.extended.perceptron.data import tasks as perceptron
from prompt_tuning.recycling.data import c4
from prompt_tuning.recycling.data import imdb
from prompt_tuning.recycling.data import qqp
from prompt_tuning.recycling.data import record
from prompt_tuning.recycling.data import sst2
from prompt_tuning.spot.data import tasks as spot
import pytest
import seqio
import tensorflow as tf

REGISTERED_BY = (tasks, spot, c4, imdb, qqp, record, sst2, perceptron)
GOLDEN = pathlib.Path(__file__).parents[2] / 'golden' / 'tasks.txt'
NAMES = [line.split() for line in GOLDEN.read_text().splitlines()]
MODELS = ('mt5_', 'byt5_')
TASKS = [name for kind, name in NAMES
         if kind == 'task' and not name.startswith(MODELS)]
MIXTURES = [name for kind, name in NAMES
            if kind == 'mixture' and not name.startswith(MODELS)]
# A multiple of the number of labels of every ranked dataset.
COUNT = 18
# Longer than any text; noise needs to know.
LENGTHS = {'inputs': 512, 'targets': 512}


class Bytes(seqio.ByteVocabulary):
  """Bytes of one text, or of several of unequal length."""

  def _encode_tf(self, s):
    if not s.shape.rank:
      return super()._encode_tf(s)
    code = {chr(byte): byte + 3 for byte in range(128)}
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            list(code), list(code.values()), value_dtype=tf.int32), 2)
    return tf.ragged.map_flat_values(table.lookup, tf.strings.bytes_split(s))


BYTES = Bytes()


def with_vocabulary(task, vocabulary):
  """A task whose texts are in another vocabulary."""
  return task.replace(output_features={
      name: dataclasses.replace(feature, vocabulary=vocabulary)
      if feature.add_eos else feature
      for name, feature in task.output_features.items()})


def split_of(task):
  """The split that is evaluated, or else one of the others."""
  return sorted(task.splits, key=lambda name: (
      not name.startswith('validation'), name == 'train', name))[0]


@pytest.fixture(scope='module')
def examples(tiny_tfds):
  """`examples(task, split)`: the first few, in bytes.

  Tasks of the same preprocessors and data share them.
  """
  made = {}

  def first(task, split):
    source = task.source.tfds_dataset
    steps = [repr(step) for step in task.preprocessors
             if not isinstance(step, seqio.CacheDatasetPlaceholder)]
    key = (source.name.partition(':')[0], source._map_split(split), *steps)
    if key not in made:
      ds = with_vocabulary(task, BYTES).get_dataset(
          LENGTHS, split, shuffle=False, try_in_mem_cache=False)
      made[key] = list(ds.take(COUNT).as_numpy_iterator())
    return made[key]

  return first


def text_of(value):
  """A text, or several, as SeqIO hands it to postprocessors."""
  return value.decode() if isinstance(value, bytes) else value


def answer_to(row):
  """What a perfect model writes: the target tokens, read back."""
  tokens = row['targets']
  if tokens.ndim == 2:  # Every label, [T, C].
    tokens = tokens[:, row['is_correct'].argmax()]
  if row.get('label') == 0:  # WSC: the target is the wrong referent.
    return 'nobody'
  return BYTES.decode(tokens.tolist())


def figures(task, rows):
  """All metrics of a model that makes no mistake."""
  if not task.metric_fns:
    return {}
  targets = [task.postprocess_fn(
      text_of(row['targets_pretokenized']), example=row, is_target=True)
             for row in rows]
  found = {}
  if task.predict_metric_fns:
    predictions = [task.postprocess_fn(
        answer_to(row), example=row, is_target=False) for row in rows]
    for metric in task.predict_metric_fns:
      found |= metric(targets, predictions)
  for metric in task.score_metric_fns:
    found |= metric(targets, [float(row['is_correct']) - 1 for row in rows])
  return found


@pytest.mark.parametrize('name', TASKS)
def test_task_builds_and_its_answers_get_full_marks(name, examples):
  task = seqio.TaskRegistry.get(name)
  for split in task.splits:
    assert task.num_input_examples(split) > 0
  rows = examples(task, split_of(task))
  assert rows
  for row in rows:
    for key, feature in task.output_features.items():
      assert row[key].dtype == feature.dtype.as_numpy_dtype
      assert row[key].ndim == feature.rank
      if feature.add_eos:
        assert (row[key].max(axis=0) < BYTES.vocab_size).all()
        assert ((row[key] == BYTES.eos_id).sum(axis=0) == 1).all()
  found = figures(task, rows)
  numbers = {key: value for key, value in found.items()
             if not isinstance(value, seqio.metrics.Text)}
  assert numbers == pytest.approx(dict.fromkeys(numbers, 100.0))
  with_samples = any('text_examples' in repr(fn) for fn in task.metric_fns)
  assert len(found) > len(numbers) if with_samples else found == numbers
  assert bool(found) == bool(task.metric_fns)


@pytest.mark.parametrize('name', [
    name for name in TASKS
    if name.startswith(('glue_', 'super_glue_')) and name.endswith('_examples')
    and '_v002' not in name and '_wsc_' not in name])
def test_examples_without_answers(name, examples):
  task = seqio.TaskRegistry.get(name)
  for split in [s for s in task.splits if s.startswith('test')]:
    rows = examples(task, split)
    assert rows
    if 'axb' in name or 'axg' in name:  # Their labels are published.
      continue
    texts = {row['targets_pretokenized'] for row in rows}
    assert texts == {b'-1.0' if 'stsb' in name else b'<unk>'}
    if 'record' not in name:
      targets = [task.postprocess_fn(
          text_of(row['targets_pretokenized']), example=row, is_target=True)
                 for row in rows]
      values = {t['value'] if isinstance(t, dict) else t for t in targets}
      assert values == {-1}


@pytest.mark.parametrize('model', MODELS)
def test_other_models_have_the_same_tasks_in_their_vocabulary(model):
  names = [name for kind, name in NAMES
           if kind == 'task' and name.startswith(model)]
  assert names
  for name in names:
    task = seqio.TaskRegistry.get(name)
    base = seqio.TaskRegistry.get(name.removeprefix(model))
    assert task.output_features == features.MODEL_TO_FEATURES[model]
    assert base.output_features == features.T5_FEATURES
    assert repr(task.source.tfds_dataset) == repr(base.source.tfds_dataset)
    for attribute in ('preprocessors', '_metric_fn_constructor_args'):
      assert [steps(x) for x in getattr(task, attribute)] == [
          steps(x) for x in getattr(base, attribute)]
    assert steps(task.postprocessor) == steps(base.postprocessor)


def steps(function):
  """What a step does, without where it is in memory."""
  kept = isinstance(function, seqio.CacheDatasetPlaceholder)
  return type(function) if kept else repr(function)


def test_sentinels_stand_first(examples):
  name = 'byt5_task_index_glue_qnli_v200'
  row = next(iter(examples(seqio.TaskRegistry.get(name), 'validation')))
  assert row['inputs'][0] == BYTES.vocab_size - 1 - 3
  assert BYTES.decode(row['inputs'][1:].tolist()).startswith('question: Who')
  assert row['inputs_pretokenized'].startswith(b'question: Who')


def label_words():
  """The label words of every task."""
  found = set()
  for name in TASKS:
    for step in seqio.TaskRegistry.get(name).preprocessors:
      given = getattr(step, 'keywords', {})
      for key in ('label_names', 'labels', 'targets'):
        found |= set(given.get(key) or ())
  return sorted(found)


def test_label_words_are_read_back(shared_data):
  vocabulary = seqio.SentencePieceVocabulary(
      str(shared_data / 't5_sentencepiece.model'), extra_ids=100)
  words = label_words()
  assert {'not_entailment', '0', 'unique', 'positive'} <= set(words)
  for word in words:
    tokens = vocabulary.encode(word)
    assert vocabulary.unk_id not in tokens
    assert vocabulary.decode(tokens) == word
    assert BYTES.decode(BYTES.encode(word)) == word


@pytest.mark.parametrize('name', [
    'taskless_glue_sst2_v200_examples', 'super_glue_copa_v102_perceptron_test',
    'task_index_super_glue_wic_v102', 'mrqa_drop_v100_examples',
    'c4_v220_bart_token_deletion', 'spot_samsum_v100'])
def test_task_in_the_vocabulary_of_t5(name, shared_data, tiny_tfds):
  vocabulary = seqio.SentencePieceVocabulary(
      str(shared_data / 't5_sentencepiece.model'), extra_ids=100)
  task = with_vocabulary(seqio.TaskRegistry.get(name), vocabulary)
  ds = task.get_dataset(
      LENGTHS, split_of(task), shuffle=False, try_in_mem_cache=False)
  for row in ds.take(2).as_numpy_iterator():
    for key in ('inputs', 'targets'):
      tokens, texts = row[key].T, row.get(f'{key}_pretokenized')
      if name.startswith('task_index_') and key == 'inputs':
        assert tokens[0] == vocabulary.vocab_size - 1 - 6
        tokens = tokens[1:]
      if name.startswith('c4_'):
        assert tokens[-1] == vocabulary.eos_id
        continue
      pairs = zip(tokens, texts, strict=True) if tokens.ndim == 2 else [
          (tokens, texts)]
      for ids, text in pairs:
        back = vocabulary.decode(ids[ids > 0].tolist())
        assert back.split() == text.decode().split()


@pytest.mark.parametrize('name', MIXTURES)
def test_mixture_has_data_to_train_on_or_evaluate(name, tiny_tfds):
  mixture = seqio.MixtureRegistry.get(name)
  evaluated = name.endswith('_eval')
  assert ('train' in mixture.splits) != evaluated
  assert 'validation' in mixture.splits or 'mnli' in name
  assert sum(mixture.get_rate(task) for task in mixture.tasks) > 0
  for task in mixture.tasks:
    assert mixture.output_features == task.output_features


@pytest.mark.parametrize('name', [
    'task_index_super_glue_with_dpr_v102_examples_proportional',
    'glue_qqp_from_mrpc_zeroshot_v002_examples', 'squad_to_drop_examples',
    'spot_glue_mnli_and_dev_v200', 'pr:glue_sst2_v200',
    'super_glue_cb_v102_perceptron'])
def test_mixture_trains(name, tiny_tfds):
  mixture = seqio.MixtureRegistry.get(name)
  tasks_of = [(with_vocabulary(task, BYTES), mixture.get_rate(task))
              for task in mixture.tasks if 'train' in task.splits]
  ds = seqio.Mixture('in_bytes', tasks_of).get_dataset(
      LENGTHS, 'train', seed=0, num_epochs=1)
  for row in ds.take(3).as_numpy_iterator():
    assert set(row) == set(mixture.output_features)
