import functools

import numpy as np
from prompt_tuning.data import descriptions
from prompt_tuning.data import metrics
from prompt_tuning.demo import tasks
from prompt_tuning.scripts import show_tasks
import pytest
import seqio
from t5x import datasets

TASK = 'demo_film_sentiment'


def _rows(*lengths):
  return [{'inputs': np.zeros(n, np.int32), 'idx': np.int32(3)}
          for n in lengths]


def test_lengths_are_those_of_the_rows():
  (found,) = descriptions.length_statistics(
      _rows(1, 4, 4, 7), ['inputs', 'targets', 'idx'], {'inputs': 4})
  assert found == descriptions.Lengths(
      'inputs', count=4, least=1, median=4.0, mean=4.0,
      most=pytest.approx(6.55), greatest=7, cut=0.25)
  (found,) = descriptions.length_statistics(_rows(2), ['inputs'])
  assert found.cut is None


def test_a_tfds_task_is_described_without_opening_it():
  def classes(text, label_classes):
    return list(label_classes).index(text)

  def wrapped(text, postprocess_func):
    return postprocess_func(text)

  task = seqio.Task(
      'described', seqio.TfdsDataSource(
          'no_such_dataset/config:1.0.0',
          splits={'train': 'train[:-9]', 'validation': 'train[-9:]'}),
      tasks.features(), [seqio.preprocessors.tokenize],
      postprocess_fn=functools.partial(
          wrapped, postprocess_func=functools.partial(
              classes, label_classes=('no', 'yes'))),
      metric_fns=[functools.partial(metrics.accuracy)])
  assert descriptions.describe(task) == descriptions.TaskDescription(
      'described', 'no_such_dataset/config:1.0.0', ['train', 'validation'],
      ['accuracy'], ['no', 'yes'])


def test_a_missing_split_is_named():
  with pytest.raises(datasets.DatasetError, match="no split 'dev'.*'test'"):
    descriptions.examples(datasets.provider_of(TASK), 'dev', 1)


def test_a_task_is_shown_as_the_model_sees_it(capsys):
  assert show_tasks.main([
      '--family=demo', f'--task={TASK}', '--examples=2', '--statistics=50',
      '--split=validation', '--task_feature_lengths=inputs=12,targets=4']) == 0
  out = capsys.readouterr().out
  text, label = tasks.examples(tasks.SOURCES[0], 'validation')[1]
  tokens = [*tasks.vocabulary().encode(text), 1]
  shown = ' '.join(str(token) for token in tokens[:12])
  assert f'example 2 of validation:\n  inputs, {len(tokens)} tokens of' in out
  assert f'    ids {shown}\n' in out
  assert f"targets, 2 tokens of 4: '{label}'" in out
  lengths = [len(tasks.vocabulary().encode(text)) + 1
             for text, _ in tasks.examples(tasks.SOURCES[0], 'validation')[:50]]
  share = np.mean([length > 12 for length in lengths])
  assert f'{100 * share:.1f} % are longer than 12 and would be cut' in out
  assert f'{np.mean(lengths):8.1f}{np.percentile(lengths, 95):8.0f}' in out


@pytest.mark.parametrize('arguments,message', [
    (['--task=demo_film_sentimnt'], "Nearest: 'demo_film_sentiment"),
    ([f'--task={TASK}', '--split=dev'], "no split 'dev'"),
    (['--module_import=no_such.module'], 'no_such.module'),
])
def test_mistakes_are_one_line(arguments, message, capsys):
  assert show_tasks.main(['--family=demo', *arguments]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
