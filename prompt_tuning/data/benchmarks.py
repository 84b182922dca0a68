"""The datasets that several families make tasks of; registers nothing.

GLUE and SuperGLUE, SQuAD, MRQA and C4: there are the tasks of the same name,
transfer between QQP and MRPC, SPoT's, and those of the recycling and perceptron
papers.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from prompt_tuning.data import constants
from prompt_tuning.data import families
from prompt_tuning.data import metrics
from prompt_tuning.data import postprocessors
from prompt_tuning.data import preprocessors
from prompt_tuning.data import qa_metrics
from prompt_tuning.data import text_formats

_ENTAILMENT = ('entailment', 'not_entailment')
_INFERENCE = ('entailment', 'neutral', 'contradiction')
_TRUTH = ('False', 'True')
_TEST_ONLY = {'test': 'test'}


def _row(
    benchmark: str,
    title: str,
    labels: tuple[str, ...],
    task_index: int,
    *scores: Callable[..., Any],
    text_name: str | None = None,
    feature_names: tuple[str, ...] | None = None,
    splits: Mapping[str, str] | None = None,
) -> families.Dataset:
  """Classification in the format of GLUE; `text_name` is the first word."""
  return families.Dataset(
      name=f'{benchmark}_{title}',
      tfds=f'{benchmark}/{title}',
      text=(functools.partial(
          text_formats.glue, benchmark_name=text_name or title,
          label_names=labels, feature_names=feature_names),),
      title=title,
      labels=labels,
      postprocess=families.class_id(labels),
      metrics=scores,
      splits=splits,
      task_index=task_index)


_glue = functools.partial(_row, 'glue')
_super_glue = functools.partial(_row, 'super_glue')


def _versions(
    rows: tuple[families.Dataset, ...], tag: str, version: str
) -> dict[str, families.Dataset]:
  """Rows by title; the tag is in the name of their tasks."""
  return {row.title: dataclasses.replace(
      row, name=f'{row.name}_{tag}', tfds=f'{row.tfds}:{version}')
          for row in rows}


_GLUE = (
    _glue('cola', ('unacceptable', 'acceptable'), 0,
          metrics.matthews_corrcoef),
    _glue('mnli', _INFERENCE, 1, metrics.accuracy),
    _glue('mnli_matched', _INFERENCE, 1, metrics.accuracy, text_name='mnli'),
    _glue('mnli_mismatched', _INFERENCE, 1, metrics.accuracy,
          text_name='mnli'),
    _glue('ax', _INFERENCE, 1, text_name='mnli', splits=_TEST_ONLY),
    _glue('mrpc', ('not_equivalent', 'equivalent'), 2,
          metrics.f1_score_with_invalid, metrics.accuracy),
    _glue('qnli', _ENTAILMENT, 3, metrics.accuracy),
    _glue('qqp', ('not_duplicate', 'duplicate'), 4,
          metrics.f1_score_with_invalid, metrics.accuracy),
    _glue('rte', _ENTAILMENT, 5, metrics.accuracy),
    _glue('sst2', ('negative', 'positive'), 6, metrics.accuracy),
    families.Dataset(
        name='glue_stsb', tfds='glue/stsb', text=(text_formats.stsb,),
        title='stsb', postprocess=postprocessors.string_to_float,
        metrics=(metrics.pearson_corrcoef, metrics.spearman_corrcoef),
        task_index=7),
    _glue('wnli', ('not_entailment', 'entailment'), 8, metrics.accuracy),
)
# By the version in the names of tasks, then by title.
GLUE = {'v002': _versions(_GLUE, 'v002', '1.0.0'),
        'v200': _versions(_GLUE, 'v200', '2.0.0')}

_AS_RTE = functools.partial(text_formats.rekey, key_map={
    'premise': 'sentence1', 'hypothesis': 'sentence2', 'label': 'label',
    'idx': 'idx'})
_AXB = _super_glue('axb', _ENTAILMENT, 5, text_name='rte', splits=_TEST_ONLY)
SUPER_GLUE = _versions((
    _super_glue('boolq', _TRUTH, 0, metrics.accuracy),
    _super_glue('cb', ('entailment', 'contradiction', 'neutral'), 1,
                metrics.mean_multiclass_f1(num_classes=3), metrics.accuracy),
    _super_glue('copa', ('choice1', 'choice2'), 2, metrics.accuracy),
    dataclasses.replace(
        _super_glue('multirc', _TRUTH, 3,
                    qa_metrics.multirc_f1_over_all_answers,
                    qa_metrics.multirc_exact_match,
                    feature_names=('question', 'answer', 'paragraph')),
        postprocess=postprocessors.multirc),
    families.Dataset(
        name='super_glue_record', tfds='super_glue/record',
        text=(text_formats.record,), title='record',
        postprocess=postprocessors.record, metrics=(qa_metrics.record,),
        task_index=4),
    _super_glue('rte', _ENTAILMENT, 5, metrics.accuracy),
    dataclasses.replace(_AXB, text=(_AS_RTE, *_AXB.text)),
    _super_glue('axg', _ENTAILMENT, 5, text_name='rte', splits=_TEST_ONLY),
    _super_glue('wic', _TRUTH, 6, metrics.accuracy,
                feature_names=('sentence1', 'sentence2', 'word')),
), 'v102', '1.0.2')

# A model says what a pronoun refers to. It is trained on the right referents
# only, and asked about all.
WSC_TRAIN = families.Dataset(
    name='super_glue_wsc_v102_simple_train',
    tfds='super_glue/wsc.fixed:1.0.2',
    text=(functools.partial(
        text_formats.wsc_simple, correct_referent_only=True),),
    title='wsc',
    splits={'train': 'train'},
    task_index=7)
WSC_EVAL = families.Dataset(
    name='super_glue_wsc_v102_simple_eval',
    tfds='super_glue/wsc.fixed:1.0.2',
    text=(functools.partial(
        text_formats.wsc_simple, correct_referent_only=False),),
    title='wsc',
    postprocess=postprocessors.wsc_simple,
    metrics=(metrics.accuracy,),
    splits={'validation': 'validation', 'test': 'test'},
    task_index=7)
DPR = families.Dataset(
    name='dpr_v001_simple',
    tfds='definite_pronoun_resolution:1.1.0',
    text=(text_formats.definite_pronoun_resolution_simple,),
    title='dpr',
    postprocess=postprocessors.identity,
    metrics=(metrics.accuracy,),
    task_index=7)

C4 = families.Dataset(
    name='c4_v220',
    tfds='c4/en:2.2.0',
    text=(functools.partial(
        text_formats.rekey, key_map={'inputs': None, 'targets': 'text'}),))


def question_answering(
    name: str,
    tfds: str,
    title: str,
    text: families.Preprocessor,
    splits: Mapping[str, str] | None = None,
) -> families.Dataset:
  """Answers that are scored as SQuAD's; any of several is right."""
  return families.Dataset(
      name=name,
      tfds=tfds,
      text=(text,),
      title=title,
      postprocess=postprocessors.qa,
      metrics=(qa_metrics.squad,),
      splits=splits,
      example_fields=(
          constants.TARGET_TEXT, constants.CONTEXT_TEXT,
          constants.QUESTION_TEXT, constants.ANSWERS_TEXT),
      samples={'format_fn': metrics.format_qa})


SQUAD = question_answering(
    'squad_v010_allanswers', 'squad/v1.1:3.0.0', 'squad', text_formats.squad)
# MRQA's sets of other domains are for testing only; here they validate.
OUT_OF_DOMAIN = (
    'bio_asq', 'drop', 'duo_rc', 'race', 'relation_extraction', 'textbook_qa')
IN_DOMAIN = ('squad', 'news_qa', 'trivia_qa', 'search_qa', 'hotpot_qa',
             'natural_questions')
MRQA = {
    title: question_answering(
        f'mrqa_{title}_v100', f'mrqa/{title}:1.0.0', title, preprocessors.mrqa,
        {'validation': 'test'} if title in OUT_OF_DOMAIN else None)
    for title in (*OUT_OF_DOMAIN, *IN_DOMAIN)}
