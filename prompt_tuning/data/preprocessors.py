"""Preprocessors of the published prompt tuning tasks."""

from collections.abc import Callable, Sequence
from typing import Any

from prompt_tuning.data import noise
from prompt_tuning.data import text_formats
import seqio
import tensorflow as tf

# The published spelling.
text_infilling = noise.text_infilling
token_deletion = noise.token_deletion
prefix_lm = noise.prefix_lm


def _qa(
    question: tf.Tensor, context: tf.Tensor, answer: tf.Tensor,
    answers: tf.Tensor, task_name: str | None = None,
) -> dict[str, tf.Tensor]:
  """Question answering in SQuAD's format."""
  question = text_formats.pad_punctuation(question)
  context = text_formats.pad_punctuation(context)
  answer = text_formats.pad_punctuation(answer)
  parts = ['question:', question, 'context:', context]
  return {
      'inputs': text_formats.join(([task_name] if task_name else []) + parts),
      'targets': answer,
      'question': question,
      'context': context,
      'answer': answer,
      'answers': text_formats.pad_punctuation(answers),
  }


@seqio.map_over_dataset
def preprocess_tsv_to_qa(
    line: tf.Tensor,
    field_delim: str = '\t',
    answer_delim: str = '|||',
    field_names: Sequence[str] | None = None,
) -> text_formats.Example:
  """Question answering from lines of columns; quotes are not special.

  Args:
    line: the columns of an example.
    field_delim: stands between columns.
    answer_delim: stands between the answers that are right.
    field_names: the columns in order; 'question', 'context', 'answer' and
      'answers' are needed, and 'id' is usual. The order is id, context,
      question, answer, answers if None.

  Returns:
    `inputs` and `targets` (the answer) in SQuAD's format, and the columns.
  """
  names = field_names or ('id', 'context', 'question', 'answer', 'answers')
  columns = dict(zip(names, tf.io.decode_csv(
      line, [''] * len(names), field_delim, use_quote_delim=False),
                     strict=True))
  answers = tf.strings.split(
      text_formats.field(columns, 'answers'), answer_delim)
  question, context, answer = (
      text_formats.field(columns, name)
      for name in ('question', 'context', 'answer'))
  return columns | _qa(question, context, answer, answers)


@seqio.map_over_dataset
def mrqa(
    example: text_formats.Example, task_name: str | None = None
) -> text_formats.Example:
  """A dataset of MRQA in SQuAD's format.

  Args:
    example: an example of MRQA.
    task_name: the first word of the inputs, if there is one.

  Returns:
    `inputs`, `targets` (the first answer), and for the metric `answers`,
    `question`, `context` and `idx`.
  """
  answers = text_formats.field(example, 'answers')
  return {
      'idx': example['qid'],
      **_qa(example['question'], example['context'], answers[0], answers,
            task_name),
  }


@seqio.map_over_dataset
def preprocess_text_generation(
    example: text_formats.Example,
    source_key: str,
    target_key: str,
    task_name: str | None = None,
    prefix: str | None = None,
    source_nested_key: str | None = None,
    target_nested_key: str | None = None,
) -> text_formats.Example:
  """A text from a text: '[task] [prefix] source' and target.

  Args:
    example: an example.
    source_key: field of the source.
    target_key: field of the target.
    task_name: the first word, if there is one.
    prefix: what is to be done, as 'summarize:', if it is said.
    source_nested_key: field within the source's field, if it has fields.
    target_nested_key: field within the target's field, if it has fields.

  Returns:
    `inputs` and `targets`.
  """
  def value(key: str, nested: str | None) -> tf.Tensor:
    found = text_formats.field(example, key)
    return found if nested is None else text_formats.field(found, nested)

  parts = [part for part in (task_name, prefix) if part is not None]
  source = value(source_key, source_nested_key)
  return {'inputs': tf.strings.join([*parts, source], separator=' '),
          'targets': value(target_key, target_nested_key)}


@seqio.map_over_dataset
def remove_first_text_token(
    example: text_formats.Example, key: str = 'inputs'
) -> text_formats.Example:
  """Removes the name of the task: all before the first space, and it.

  Args:
    example: an example.
    key: field of the text.

  Returns:
    The example; unchanged if the text has no space.
  """
  text = text_formats.field(example, key)
  return {**example, key: tf.strings.regex_replace(
      text, '^[^ ]* ', '', replace_global=False)}


def add_sentinel_to_beginning(
    ds: tf.data.Dataset,
    output_features: Any,
    field: str = 'targets',
    offset: int = 0,
) -> tf.data.Dataset:
  """Puts `<extra_id_{offset}>` in front of tokens.

  Args:
    ds: examples of tokens.
    output_features: SeqIO's features.
    field: the field that gets it.
    offset: which sentinel; the first is the vocabulary's last piece.

  Returns:
    Examples of which one field is longer by one.
  """
  sentinel = output_features[field].vocabulary.vocab_size - 1 - offset

  @seqio.map_over_dataset
  def add(example: text_formats.Example) -> text_formats.Example:
    tokens = example[field]
    first = tf.constant([sentinel], tokens.dtype)
    return {**example, field: tf.concat([first, tokens], axis=0)}

  return add(ds)


def add_sentinel_to_targets(
    ds: tf.data.Dataset, output_features: Any) -> tf.data.Dataset:
  """Puts `<extra_id_0>` in front of the targets, as span corruption does."""
  return add_sentinel_to_beginning(ds, output_features)


def build_langid_filter(
    lang_code: str, lang_detector: Any, threshold: float
) -> Callable[[bytes], bool]:
  """Whether a text is surely in a language.

  Args:
    lang_code: the language, as the detector calls it.
    lang_detector: has `find_language(text=...)`, whose result has `language`,
      `probability` and `is_reliable`, as that of gcld3.
    threshold: the least probability.

  Returns:
    A function of a text in UTF-8.
  """
  def is_in_language(text: bytes) -> bool:
    found = lang_detector.find_language(text=text.decode('utf-8'))
    return bool(found.is_reliable and found.language == lang_code
                and found.probability >= threshold)

  return is_in_language


def filter_langid(
    dataset: tf.data.Dataset,
    lang_code: str,
    lang_detector: Any,
    text_key: str = 'text',
    threshold: float = 0.95,
) -> tf.data.Dataset:
  """Keeps examples whose text is surely in a language.

  Args:
    dataset: examples.
    lang_code: see `build_langid_filter`.
    lang_detector: see `build_langid_filter`.
    text_key: field of the text.
    threshold: see `build_langid_filter`.

  Returns:
    Fewer examples.
  """
  is_in_language = build_langid_filter(lang_code, lang_detector, threshold)
  return dataset.filter(lambda x: tf.ensure_shape(
      tf.numpy_function(is_in_language, [x[text_key]], tf.bool), []))
