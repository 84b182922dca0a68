"""Training that compares labels, beside training that writes the right one.

For each dataset of GLUE and SuperGLUE that has enough examples:

    perceptron           an example holds every label, `[T, C]` tokens each
    generation           the usual examples, to compare with
    rank_classification  evaluates the latter by the scores of the labels

The last of the training examples validate; the validation split is the test.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import numpy as np
from prompt_tuning.data import benchmarks
from prompt_tuning.data import constants
from prompt_tuning.data import families
from prompt_tuning.data import features
from prompt_tuning.data import postprocessors
from prompt_tuning.data import rank_classification
import seqio
import tensorflow as tf

KEYS = ('inputs', 'targets')
PERCEPTRON_DEFAULT_FEATURES = {
    **{key: dataclasses.replace(
        features.T5_FEATURES[key], required=True, rank=2) for key in KEYS},
    'is_correct': seqio.Feature(
        seqio.PassThroughVocabulary(size=2), add_eos=False, dtype=tf.bool),
}
# Training examples that validate.
NUM_VAL = {
    'glue': {'cola': 500, 'sst2': 2000, 'mrpc': 200, 'qqp': 5000,
             'qnli': 3000, 'rte': 200},
    'super_glue': {'boolq': 400, 'cb': 50, 'copa': 50, 'rte': 200, 'wic': 400},
}


@seqio.map_over_dataset
def to_dense(x: rank_classification.Example) -> rank_classification.Example:
  """Labels of unequal length are padded, `[C, T]`."""
  return {**x, **{key: x[key].to_tensor() for key in KEYS}}


@seqio.map_over_dataset
def transpose(x: rank_classification.Example) -> rank_classification.Example:
  """Tokens come first, `[T, C]`: SeqIO trims the first axis."""
  return {**x, **{key: tf.transpose(x[key]) for key in KEYS}}


def perceptron_postprocessor(
    decoded_model_output: Any,
    postprocess_func: Callable[..., Any],
    *,
    example: rank_classification.Example,
    is_target: bool = False,
) -> Any:
  """Postprocesses an example with every label as one with the right label.

  Args:
    decoded_model_output: the text of a prediction; unused for a target.
    postprocess_func: of an example with one label.
    example: with `is_correct` `[C]`, and the texts `[C]`.
    is_target: whether this is a target.

  Returns:
    What `postprocess_func` returns.
  """
  right = np.flatnonzero(example['is_correct'])
  texts = {constants.INPUT_TEXT: example[constants.INPUT_TEXT][0],
           constants.TARGET_TEXT: constants.UNKNOWN}
  if right.size:
    texts[constants.TARGET_TEXT] = postprocessors.as_text(
        example[constants.TARGET_TEXT][right[0]])
  return postprocess_func(
      texts[constants.TARGET_TEXT] if is_target else decoded_model_output,
      example={**example, **texts}, is_target=is_target)


def _add_perceptron(
    name: str, row: families.Dataset, title: str, splits: dict[str, str]
) -> None:
  """Adds a task of examples with every label."""
  shown = families.with_examples(dataclasses.replace(row, title=title))
  labels = families.ranked(row, mode='fewshot_eval')
  dataset = dataclasses.replace(
      shown,
      text=labels.text,
      splits=splits,
      postprocess=functools.partial(
          perceptron_postprocessor,
          postprocess_func=shown.postprocess or postprocessors.identity))
  families.add_task(
      name, dataset,
      [*dataset.text, seqio.preprocessors.tokenize,
       seqio.preprocessors.append_eos_after_trim, to_dense, transpose],
      PERCEPTRON_DEFAULT_FEATURES)


def _register(row: families.Dataset, count: int) -> None:
  """Adds the tasks and mixtures of a dataset."""
  row = families.nameless(row)
  name, train, test = (
      row.name, families.held_out(count), {'validation': 'validation'})
  _add_perceptron(f'{name}_perceptron_train', row,
                  f'{row.title} Perceptron Validation', train)
  _add_perceptron(f'{name}_perceptron_test', row,
                  f'{row.title} Perceptron Test', test)
  families.add_mixture(
      f'{name}_perceptron',
      [f'{name}_perceptron_train', f'{name}_perceptron_test'])
  for part, title, splits in (
      ('train', 'Valid', train), ('test', 'Test', test)):
    families.add_uncached(
        f'{name}_generation_{part}',
        families.with_examples(dataclasses.replace(
            row, title=f'{row.title} Generation {title}')), splits)
  for part, split in (
      ('validation', train['validation']), ('test', 'validation')):
    families.add_uncached(
        f'{name}_rank_classification_{part}', families.ranked(row),
        {'validation': split})
  families.add_mixture(
      f'{name}_generation',
      [f'{name}_generation_train', f'{name}_generation_test',
       f'{name}_rank_classification_validation',
       f'{name}_rank_classification_test'])


for _benchmark, _rows in (('glue', benchmarks.GLUE['v200']),
                          ('super_glue', benchmarks.SUPER_GLUE)):
  for _title, _count in NUM_VAL[_benchmark].items():
    _register(_rows[_title], _count)
