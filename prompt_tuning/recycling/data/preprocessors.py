"""Preprocessors of prompt recycling."""

from collections.abc import Sequence
import contextlib
import math
from typing import Any

from prompt_tuning.data import constants
from prompt_tuning.data import rank_classification
from prompt_tuning.data import text_formats
import seqio
import tensorflow as tf


def random_targets(
    ds: tf.data.Dataset,
    output_features: Any,
    sequence_length: Any,
    targets: Sequence[str],
    probs: Sequence[float] | None = None,
    seed: int | None = None,
) -> tf.data.Dataset:
  """Replaces the target tokens by those of a text drawn from several.

  Args:
    ds: examples.
    output_features: SeqIO's features; the vocabulary of `targets` is used.
    sequence_length: not used.
    targets: the texts.
    probs: the probability of each, alike if None; the last may be left out.
    seed: of the drawing; that of the task if None.

  Returns:
    Examples with other `targets`.

  Raises:
    ValueError: if the probabilities are not in (0, 1] or do not add up to 1.
  """
  del sequence_length
  logits = tf.math.log(tf.constant([_probabilities(targets, probs)]))
  vocabulary = output_features['targets'].vocabulary
  tokens = tf.ragged.constant(
      [vocabulary.encode(text) for text in targets], dtype=tf.int32)

  @seqio.map_over_dataset(num_seeds=1)
  def draw(x: text_formats.Example, seed: tf.Tensor) -> text_formats.Example:
    choice = tf.random.stateless_categorical(logits, 1, seed)[0, 0]
    return {**x, 'targets': tokens[choice]}

  seeds = (contextlib.nullcontext() if seed is None
           else seqio.map_seed_manager(seed))
  with seeds:
    return draw(ds)


def _probabilities(
    targets: Sequence[str], probs: Sequence[float] | None) -> list[float]:
  """A probability for each target."""
  if probs is None:
    probs = [1 / len(targets)] * len(targets)
  found = list(probs)
  if len(found) == len(targets) - 1:
    found.append(1 - math.fsum(found))
  fits = len(found) == len(targets) and math.isclose(math.fsum(found), 1)
  if not fits or not all(0 < p <= 1 for p in found):
    raise ValueError(
        f'random_targets: probs is {list(probs)} for {len(targets)} targets; '
        'expected one for each (or all but the last), in (0, 1], that add up '
        'to 1. Leave out a target that is never drawn.')
  return found


@seqio.map_over_dataset
def label_idx_to_string(
    ex: text_formats.Example,
    label_names: Sequence[str],
    key: str = 'label',
    unk_value: int = -1,
    unk_string: str = 'UNK',
) -> text_formats.Example:
  """Replaces a label by its word.

  Args:
    ex: an example.
    label_names: the words.
    key: field of the label.
    unk_value: the label of examples that have none.
    unk_string: their word.

  Returns:
    The example with another label.
  """
  label = text_formats.field(ex, key)
  index = tf.where(
      tf.equal(label, unk_value), tf.cast(len(label_names), label.dtype), label)
  return {**ex, key: tf.gather([*label_names, unk_string], index)}


@seqio.map_over_dataset
def join_fields(
    ex: text_formats.Example,
    fields: Sequence[str] = ('title', 'description'),
    output_field: str = 'text',
) -> text_formats.Example:
  """Joins the texts of several fields, as far as the example has them.

  Args:
    ex: an example.
    fields: the fields in order.
    output_field: where the text goes.

  Returns:
    The example with one field more.

  Raises:
    ValueError: if it has none of the fields.
  """
  found = [ex[name] for name in fields if name in ex]
  if not found:
    raise ValueError(
        f'join_fields: examples have {sorted(ex)}, none of {list(fields)}.')
  return {**ex, output_field: text_formats.join(found)}


@seqio.map_over_dataset
def record(x: text_formats.Example) -> text_formats.Example:
  """ReCoRD with one example per query, for `rank_entities`.

  Args:
    x: an example of ReCoRD.

  Returns:
    What `text_formats.record` returns, once, with the first answer as target,
    and the `entities`.
  """
  answers = text_formats.field(x, 'answers')
  return {
      'inputs': text_formats.record_inputs(x),
      'targets': tf.concat([answers, [constants.UNKNOWN]], axis=0)[0],
      'answers': answers,
      'entities': x['entities'],
      'idx/passage': x['idx']['passage'],
      'idx/query': x['idx']['query'],
  }


def rank_entities(
    ds: tf.data.Dataset, mode: str = 'eval') -> tf.data.Dataset:
  """Makes an example of every entity of an example; all answers are right.

  Args:
    ds: of `record`.
    mode: see `rank_classification.rank_classification`.

  Returns:
    See `rank_classification.rank_classification`.
  """
  return rank_classification.rank_classification(
      ds,
      inputs_fn=lambda x: tf.repeat(x['inputs'][None], tf.size(x['entities'])),
      targets_fn=lambda x: x['entities'],
      is_correct_fn=lambda x: tf.reduce_any(
          tf.equal(x['entities'][:, None], x['answers'][None, :]), axis=1),
      mode=mode)
