"""From texts to what metrics compare, called as SeqIO calls it."""

import functools

import numpy as np
from prompt_tuning.data import metrics
from prompt_tuning.data import postprocessors
from prompt_tuning.data import qa_metrics
from prompt_tuning.data import text_formats
from prompt_tuning.recycling.data import metrics as recycling
import pytest
import seqio

LABELS = ['not_duplicate', 'duplicate']
WSC = {'targets_pretokenized': b"Bob's old hat", 'label': np.int64(1)}

CASES = {
    'a label': (functools.partial(postprocessors.string_label_to_class_id,
                                  label_classes=LABELS), [
        ('duplicate', 1), ('not_duplicate', 0), ('Duplicate', -1), ('', -1),
        ('<unk>', -1)]),
    'labels in a tuple': (
        functools.partial(postprocessors.string_label_to_class_id,
                          label_classes=('False', 'True'), default=9), [
            ('True', 1), ('true', 9)]),
    'a number': (postprocessors.string_to_float, [
        ('3.8', 3.8), ('-2', -2.0), ('five', -1.0), ('', -1.0), ('nan', -1.0),
        ('inf', -1.0)]),
    'multirc': (postprocessors.multirc, [
        ('True', {'value': 1}), ('False', {'value': 0}), ('x', {'value': -1})]),
    'record': (postprocessors.record, [('Ann', {'value': 'Ann'})]),
    'qa': (postprocessors.qa, [('Ann', 'Ann')]),
    'identity': (postprocessors.identity, [('Ann', 'Ann')]),
    'lower case': (postprocessors.lower_text, [('Ann', 'ann')]),
    'the first sentinel': (postprocessors.remove_extra_id_0, [
        ('<extra_id_0>  good', 'good'), ('<extra_id_0>', ''), (' good', 'good'),
        ('good <extra_id_0>', 'good <extra_id_0>'),
        ('<extra_id_1> good', '<extra_id_1> good')]),
    'mrpc as qqp': (postprocessors.mrpc_to_qqp, [
        ('not_equivalent', 'not_duplicate'), ('equivalent', 'duplicate'),
        ('x', 'x')]),
    'qqp as mrpc': (postprocessors.qqp_to_mrpc, [
        ('not_duplicate', 'not_equivalent'), ('duplicate', 'equivalent')]),
    'one after the other': (
        postprocessors.sequential(
            postprocessors.remove_extra_id_0, postprocessors.mrpc_to_qqp,
            functools.partial(postprocessors.string_label_to_class_id,
                              label_classes=LABELS)), [
            ('<extra_id_0> equivalent', 1), ('not_equivalent', 0), ('x', -1)]),
    'a referent': (postprocessors.wsc_simple, [
        ("bob's hat", 1), ("The old Bob's hat", 1),
        ("my Bob's very old hat", 1), ('', -1), ('the', -1), ("Ann's hat", 0),
        # Without the apostrophe this is another referent.
        ('old hat', 0), ('Bob', 0)]),
}


@pytest.mark.parametrize('name', CASES)
def test_predictions(name):
  process, cases = CASES[name]
  for text, expected in cases:
    assert process(text, example=WSC, is_target=False) == expected, text


@pytest.mark.parametrize('referent, given, expected', [
    (b'the bunny', 'fuzzy bunny', 1), (b'the fuzzy bunny', 'Bunny', 1),
    (b'the fuzzy bunny', 'the cat', 0), (b'the', 'cat', 0),
    (b'fuzzy bunny', 'fuzzy cat', 0)])
def test_referents_by_some_of_their_words(referent, given, expected):
  assert postprocessors.wsc_simple(
      given, example={'targets_pretokenized': referent}) == expected


EXAMPLE = {
    'idx/question': np.int32(4), 'idx/passage': np.int32(1),
    'idx/query': np.int32(2), 'label': np.int32(0),
    'answers': np.array([b'Zo\xc3\xab', b'Ann'], object)}


@pytest.mark.parametrize('process, text, expected', [
    (postprocessors.multirc, 'True', {'value': 1, 'group': 4}),
    (postprocessors.record, 'Ann',
     {'value': ['Zo\u00eb', 'Ann'], 'group': (1, 2)}),
    (postprocessors.qa, 'Ann', ['Zo\u00eb', 'Ann']),
    (postprocessors.wsc_simple, 'Ann', 0)])
def test_targets(process, text, expected):
  assert process(text, example=EXAMPLE, is_target=True) == expected
  with pytest.raises(ValueError, match='needs the example'):
    process(text, is_target=True)


def test_predictions_keep_what_they_were_made_from():
  process = functools.partial(
      postprocessors.postprocess_with_examples,
      functools.partial(postprocessors.string_label_to_class_id,
                        label_classes=LABELS))
  example = {'inputs_pretokenized': b'qqp ...', 'other': 1}
  assert process('duplicate', example=example, is_target=False) == {
      'prediction': 1, 'prediction_pretokenized': 'duplicate',
      'inputs_pretokenized': b'qqp ...', 'targets_pretokenized': None}
  assert process('duplicate', example=example, is_target=True) == 1


def test_a_stage_may_follow_a_stage():
  first = functools.partial(
      postprocessors.postprocess_with_examples, postprocessors.lower_text,
      prediction_field='lower', prediction_text_field='said',
      example_fields=())
  second = functools.partial(
      postprocessors.postprocess_with_examples,
      functools.partial(postprocessors.string_label_to_class_id,
                        label_classes=LABELS),
      decoded_model_output_field='lower',
      example_fields=('inputs_pretokenized', 'said', 'none'))
  process = postprocessors.sequential(first, second)
  example = {'inputs_pretokenized': b'x'}
  assert process('DUPLICATE', example=example, is_target=False) == {
      'prediction': 1, 'prediction_pretokenized': 'duplicate',
      'inputs_pretokenized': b'x', 'said': 'DUPLICATE', 'none': None}
  assert process('duplicate', example=example, is_target=True) == 1


def test_names_are_prefixed():
  found = recycling.prefix_metric_names(
      [1], [0.5], metric_prefix='normed',
      metric_fn=lambda targets, scores: {'accuracy': targets[0] + scores[0]})
  assert found == {'normed_accuracy': 1.5}


def with_examples(
    process, metric, format_fn=metrics.format_classification, **fields):
  return (
      functools.partial(
          postprocessors.postprocess_with_examples, process, **fields),
      [functools.partial(metrics.metric_with_examples, metric),
       functools.partial(
           metrics.text_examples, task_name='t', format_fn=format_fn)])


QA = {'id': 'i', 'question': 'Who?', 'context': 'Ann and Bob.',
      'answers': {'text': ['Ann', 'the Ann'], 'answer_start': [0, 0]}}
RECORD = {'query': '@placeholder', 'entities': ['Ann', 'Bob'],
          'answers': ['Ann', 'Bob'], 'passage': 'Ann and Bob.',
          'idx': {'passage': 0, 'query': 1}}
# Preprocessor, example, postprocessor, metrics, what they make of the targets.
TASKS = {
    'squad': (text_formats.squad, QA, postprocessors.qa, [metrics.squad],
              {'em': 100, 'f1': 100}),
    'squad with examples': (
        text_formats.squad, QA, *with_examples(
            postprocessors.qa, metrics.squad, metrics.format_qa,
            example_fields=('context', 'question', 'answers')),
        {'em': 100, 'f1': 100}),
    'record': (text_formats.record, RECORD, postprocessors.record,
               [qa_metrics.record], {'em': 100, 'f1': 100}),
    'wsc': (text_formats.wsc_simple,
            {'text': 'Ann saw that she won .', 'span1_text': 'Ann', 'label': 1,
             'span2_text': 'she', 'span2_index': 3, 'idx': 0},
            *with_examples(postprocessors.wsc_simple, metrics.accuracy),
            {'accuracy': 100}),
    'multirc': (
        functools.partial(
            text_formats.glue, benchmark_name='multirc',
            label_names=('False', 'True'), feature_names=('question',)),
        {'question': 'Who?', 'label': 1,
         'idx': {'paragraph': 0, 'question': 1, 'answer': 2}},
        postprocessors.multirc,
        [metrics.multirc_f1_over_all_answers, qa_metrics.multirc_exact_match],
        {'f1': 100, 'exact_match': 100}),
}


@pytest.mark.parametrize('name', TASKS)
def test_targets_have_full_scores_by_seqio(name, mapped):
  """Text format, vocabulary, postprocessor and metric fit each other."""
  preprocess, example, process, metric_fns, expected = TASKS[name]
  feature = seqio.Feature(seqio.ByteVocabulary())
  features = {'inputs': feature, 'targets': feature}
  examples = mapped(
      lambda ds: seqio.preprocessors.tokenize(preprocess(ds), features),
      example)
  figures = {}
  for metric_fn in metric_fns:
    metric = seqio.metrics.LegacyMetric.empty(metric_fn, process)
    size = max(len(x['targets']) for x in examples)
    predicted = [x['targets'] + [0] * (size - len(x['targets']))
                 for x in examples]
    figures |= metric.from_model_output(
        examples, np.array(predicted), features).compute()
  if 't samples' in figures:
    assert 'Ann' in figures.pop('t samples').textdata
    assert figures.pop('t negative samples').textdata == ''
  assert figures == expected
