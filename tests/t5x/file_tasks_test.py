import pathlib

import numpy as np
from prompt_tuning.demo import tasks
import pytest
import seqio
from t5x import datasets
from t5x import file_tasks
from t5x import inference_data
import tensorflow as tf

LENGTHS = {'inputs': 16, 'targets': 4}


def _read(task, **config):
  (examples,) = inference_data.inference_examples(
      datasets.DatasetConfig(
          task, LENGTHS, file_tasks.SPLIT, 8, False, 0, **config),
      seqio.EncDecFeatureConverter(pack=False))
  return examples, list(examples.read(0))


def _texts(pairs, name):
  return [example[f'{name}_pretokenized'].decode() for example, _ in pairs]


def _file(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  return str(path)


@pytest.mark.parametrize('name,content', [
    ('a.txt', 'the film was good\n\nthe "hotel"\twas bad\n'),
    ('a.txt', 'the film was good\r\n\r\nthe "hotel"\twas bad'),
    ('a.txt', '\ufeffthe film was good\n\nthe "hotel"\twas bad'),
    ('a.jsonl', '{"inputs": "the film was good", "id": 1}\n{"inputs": ""}\n'
     '{"inputs": "the \\"hotel\\"\\twas bad"}\n'),
])
def test_every_input_of_a_file_is_an_example(tmp_path, name, content):
  task = file_tasks.create_task_from_file(
      _file(tmp_path, name, content), tasks.features())
  examples, pairs = _read(task)
  inputs = ['the film was good', '', 'the "hotel"\twas bad']
  assert _texts(pairs, 'inputs') == inputs
  assert examples.name == 'a' and not examples.has_targets
  vocabulary = tasks.vocabulary()
  for text, (example, features) in zip(inputs, pairs, strict=True):
    tokens = [*vocabulary.encode(text), vocabulary.eos_id]
    np.testing.assert_array_equal(
        features['encoder_input_tokens'], np.pad(tokens, (0, 16 - len(tokens))))
    assert features['decoder_input_tokens'].shape == (4,)
    assert 'targets_pretokenized' not in example


@pytest.mark.parametrize('name,content', [
    ('a.jsonl', '{"q": "one", "a": "no"}\n{"a": "yes", "q": "two"}\n'),
    ('a.tsv', 'a\tid\tq\nno\t1\tone\nyes\t2\ttwo\n'),
    ('a.csv', 'a,id,q\r\nno,1,one\r\n"yes","2, 3",two\r\n')])
def test_fields_are_chosen_by_name(tmp_path, name, content):
  task = file_tasks.create_task_from_file(
      _file(tmp_path, name, content), tasks.features(), input_field='q',
      target_field='a')
  examples, pairs = _read(task)
  assert _texts(pairs, 'inputs') == ['one', 'two']
  assert _texts(pairs, 'targets') == ['no', 'yes']
  assert examples.has_targets


def test_labels_make_an_example_each(tmp_path):
  task = file_tasks.create_task_from_file(
      _file(tmp_path, 'a.txt', 'one\ntwo'), tasks.features(),
      labels=['no', 'yes', 'no idea'])
  examples, pairs = _read(task)
  assert examples.has_targets
  assert _texts(pairs, 'inputs') == ['one'] * 3 + ['two'] * 3
  assert _texts(pairs, 'targets') == ['no', 'yes', 'no idea'] * 2


def test_the_content_names_the_source(tmp_path):
  def identity(content):
    return _read(file_tasks.create_task_from_file(
        _file(tmp_path, 'a.txt', content), tasks.features()))[0].source
  assert identity('one\n') == identity('one\n') != identity('two\n')


@pytest.mark.parametrize('name,content,message', [
    ('a.txt', '', r'a\.txt is empty'),
    ('a.txt', ' \n\n', r'a\.txt is empty'),
    ('a.tsv', 'q\ta\n', r'a\.tsv is empty'),
    ('a.jsonl', '{"q": "x", "a": "y"}\n{"q": }',
     r'a\.jsonl, line 2, column 7: no JSON'),
    ('a.jsonl', '{"q": "x", "a": "y"}\n\n{"q": "x", "a": "y"}',
     r'line 2, column 1: no JSON'),
    ('a.jsonl', '{"q": ' + 5000 * '1' + '}', 'line 1, column 1: no JSON'),
    ('a.jsonl', 99999 * '[', 'line 1, column 1: no JSON'),
    ('a.jsonl', '["q"]', r'line 1: expected a JSON object, found list'),
    ('a.jsonl', '{"q": "x"}', r"line 1: expected a text 'a', found null.*"
     r"\['q'\].*TARGET_FIELD"),
    ('a.jsonl', '{"q": 3, "a": "y"}', r"line 1: expected a text 'q', found 3"),
    ('a.tsv', 'q\tb\nx\ty', r"line 1: expected one column 'a'.*\['q', 'b'\]"),
    ('a.tsv', 'q\ta\tq\nx\ty\tz', r"line 1: expected one column 'q'"),
    ('a.tsv', 'q\ta\nx\ty\nx', r'line 3: 1 columns, but line 1 names 2'),
    ('a.jsonl', b'{"q": "x", "a": "y"}\n{"q": "\xff"}',
     r'line 2, byte 8: no UTF-8'),
    ('a.xls', 'q,a', r'\.txt, \.jsonl, \.csv, \.tsv'),
    ('a.csv', 'q,a\nx,"y\nz"\nx', r'line 4: 1 columns, but line 1'),
    ('a.csv', 'q,a\n\nx,"y', r'line 3: no CSV'),
    ('a.csv', 'q,b\nx,y', r"line 1: expected one column 'a'"),
    ('a.txt', 'one', r'plain text.*TARGET_FIELD'),
])
def test_what_cannot_be_used_is_named_with_its_place(
    tmp_path, name, content, message):
  options = {} if 'empty' in message and name == 'a.txt' else {
      'input_field': 'q', 'target_field': 'a'}
  with pytest.raises(datasets.DatasetError, match=message) as caught:
    file_tasks.create_task_from_file(
        _file(tmp_path, name, content), tasks.features(), **options)
  assert '\n' not in str(caught.value)


def test_a_missing_file_and_contradicting_choices_are_refused(tmp_path):
  with pytest.raises(datasets.DatasetError, match='INPUT_FILE /no.txt'):
    file_tasks.create_task_from_file('/no.txt', tasks.features())
  with pytest.raises(datasets.DatasetError, match='LABELS and TARGET_FIELD'):
    file_tasks.create_task_from_file(
        '/no.txt', tasks.features(), target_field='a', labels=['a', 'b'])


def _tfrecord(tmp_path):
  path = str(tmp_path / 'a.tfrecord')
  with tf.io.TFRecordWriter(path) as writer:
    for question, answer in (('one', 'no'), ('two', 'yes')):
      feature = {name: tf.train.Feature(bytes_list=tf.train.BytesList(
          value=[text.encode()])) for name, text in (
              ('q', question), ('a', answer))}
      writer.write(tf.train.Example(features=tf.train.Features(
          feature=feature)).SerializeToString())
  return path


@pytest.mark.parametrize('targets_key', [None, 'a'])
def test_tfexamples_are_read(tmp_path, targets_key):
  path = _tfrecord(tmp_path)
  for _ in range(2):  # Asking again, as a notebook does, is no error.
    name = file_tasks.create_task_from_tfexample_file(
        [path], 'tfrecord', 'q', targets_key, tasks.features())
  assert name.startswith('infer_') and len(name) == len('infer_') + 10
  _, pairs = _read(name)
  assert _texts(pairs, 'inputs') == ['one', 'two']
  if targets_key:
    assert _texts(pairs, 'targets') == ['no', 'yes']


def test_other_files_of_examples_are_refused(tmp_path):
  with pytest.raises(datasets.DatasetError, match='sstable.*tfrecord'):
    file_tasks.create_task_from_tfexample_file(
        ['x'], 'sstable', 'q', None, tasks.features())
  with pytest.raises(datasets.DatasetError, match='does not exist'):
    file_tasks.create_task_from_tfexample_file(
        [str(pathlib.Path(tmp_path) / 'x')], 'tfrecord', 'q', None,
        tasks.features())
