"""Registered tasks in the vocabulary of a model."""

from prompt_tuning.data import in_vocabulary
from prompt_tuning.data import metrics
from prompt_tuning.demo import tasks
import pytest
from sentencepiece import sentencepiece_model_pb2
import seqio
from t5x import datasets
import tensorflow as tf

NAMES = ('in_vocabulary_test_task', 'in_vocabulary_test_other')
TEXTS = {'inputs': 'the film was good', 'targets': 'yes'}


def _rows(split, shuffle_files, seed=None):
  return tf.data.Dataset.from_tensors(TEXTS | {'idx': [3]})


@pytest.fixture(autouse=True)
def registered():
  before = [set(r.names()) for r in (seqio.TaskRegistry, seqio.MixtureRegistry)]
  absent = seqio.SentencePieceVocabulary('gs://nowhere/sentencepiece.model')
  for name in NAMES:
    seqio.TaskRegistry.add(
        name, source=seqio.FunctionDataSource(_rows, splits=['train']),
        preprocessors=[seqio.preprocessors.tokenize,
                       seqio.preprocessors.append_eos],
        output_features={
            'inputs': seqio.Feature(absent, add_eos=True, required=False),
            'targets': seqio.Feature(absent, add_eos=False),
            'idx': seqio.Feature(
                seqio.PassThroughVocabulary(9), add_eos=False)},
        metric_fns=[metrics.accuracy])
  seqio.MixtureRegistry.add('in_vocabulary_test_mixture', [
      (NAMES[0], 3.0), (NAMES[1], 1.0)])
  yield
  for registry, names in zip(
      (seqio.TaskRegistry, seqio.MixtureRegistry), before, strict=True):
    for name in set(registry.names()) - names:
      registry.remove(name)


def _first(name):
  return next(seqio.get_mixture_or_task(name).get_dataset(
      {'inputs': 32, 'targets': 32, 'idx': 1}, 'train',
      shuffle=False).as_numpy_iterator())


@pytest.mark.parametrize('vocabulary', [
    tasks.vocabulary(), seqio.ByteVocabulary()])
def test_a_task_is_the_same_in_another_vocabulary(vocabulary):
  name = in_vocabulary.task(NAMES[0], vocabulary)
  copy, task = (seqio.TaskRegistry.get(n) for n in (name, NAMES[0]))
  row = _first(name)
  assert row['inputs'].tolist() == [*vocabulary.encode(TEXTS['inputs']), 1]
  assert row['targets'].tolist() == vocabulary.encode(TEXTS['targets'])
  assert row['idx'].tolist() == [3]
  features = copy.output_features
  assert features['inputs'].vocabulary is vocabulary
  assert not features['inputs'].required and not features['targets'].add_eos
  assert features['idx'] == task.output_features['idx']
  assert copy.metric_fns == task.metric_fns
  datasets.verify_matching_vocabs(
      datasets.DatasetConfig(name, {'inputs': 8, 'targets': 8}, 'train', 1,
                             shuffle=False, seed=0),
      vocabulary, vocabulary)


def test_a_mixture_keeps_its_rates():
  name = in_vocabulary.task('in_vocabulary_test_mixture', tasks.vocabulary())
  mixture = seqio.MixtureRegistry.get(name)
  rates = {task.name: mixture.get_rate(task)
           for task in seqio.get_subtasks(mixture)}
  ending = name.removeprefix('in_vocabulary_test_mixture')
  assert rates == {NAMES[0] + ending: 3.0, NAMES[1] + ending: 1.0}
  assert _first(name)['inputs'][-1] == 1


def test_a_name_is_of_one_vocabulary(tmp_path):
  name = in_vocabulary.task(NAMES[0], tasks.vocabulary())
  copy = tmp_path / 'copy.model'
  copy.write_bytes(tasks.VOCABULARY_FILE.read_bytes())
  assert name == in_vocabulary.task(
      NAMES[0], seqio.SentencePieceVocabulary(str(copy), tasks.EXTRA_IDS))
  # As many pieces, but one of them is another.
  model = sentencepiece_model_pb2.ModelProto.FromString(copy.read_bytes())
  model.pieces[-1].piece += 'x'
  (tmp_path / 'other.model').write_bytes(model.SerializeToString())
  others = [
      seqio.SentencePieceVocabulary(
          str(tmp_path / 'other.model'), tasks.EXTRA_IDS),
      seqio.SentencePieceVocabulary(str(copy)), seqio.ByteVocabulary()]
  names = {in_vocabulary.task(NAMES[0], other) for other in others} | {name}
  assert len(names) == 4


def test_a_task_that_is_not_registered_is_named():
  with pytest.raises(datasets.DatasetError, match='in_vocabulary_test_task'):
    in_vocabulary.task('in_vocabulary_test_tas', tasks.vocabulary())
  with pytest.raises(datasets.DatasetError, match='no_such_module'):
    in_vocabulary.task(NAMES[0], tasks.vocabulary(), 'no_such_module')
