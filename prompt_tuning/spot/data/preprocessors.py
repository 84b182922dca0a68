"""Text formats of SPoT's tasks that no other package has.

All begin with the name of the dataset. That of classification is published; the
others are this library's, after the pattern of T5's for COPA, STS-B and XSum.
"""

from collections.abc import Sequence

from prompt_tuning.data import text_formats
import seqio
import tensorflow as tf

# What a speaker does, by the number that TFDS's GEM gives it.
_DIALOG_ACTS = (
    'AFFIRM', 'AFFIRM_INTENT', 'CONFIRM', 'GOODBYE', 'INFORM', 'INFORM_COUNT',
    'INFORM_INTENT', 'NEGATE', 'NEGATE_INTENT', 'NOTIFY_FAILURE',
    'NOTIFY_SUCCESS', 'OFFER', 'OFFER_INTENT', 'REQUEST', 'REQUEST_ALTS',
    'REQ_MORE', 'SELECT', 'THANK_YOU')


@seqio.map_over_dataset
def preprocess_text_classification(
    example: text_formats.Example,
    text_a_key: str,
    text_b_key: str | None = None,
    task_name: str | None = None,
    label_names: Sequence[str] | None = None,
) -> text_formats.Example:
  """Classification as '[task] a_key: a [b_key: b]' and a label word.

  Args:
    example: an example with texts and `label`.
    text_a_key: field of the first text.
    text_b_key: field of the second text, if there is one.
    task_name: the first word, if there is one.
    label_names: the word of each label; a label of -1 is '<unk>', and a label
      that is a text must be a number. The label itself is the target if None.

  Returns:
    `inputs` and `targets`.
  """
  parts = [] if task_name is None else [task_name]
  for key in (text_a_key, text_b_key):
    if key is not None:
      parts += [f'{key}:', text_formats.field(example, key)]
  label = text_formats.field(example, 'label')
  if label_names is not None:
    if label.dtype == tf.string:
      label = tf.strings.to_number(label, tf.int64)
    targets = text_formats.label_text(label, label_names)
  else:
    targets = tf.strings.as_string(label)
  return {'inputs': text_formats.join(parts), 'targets': targets}


@seqio.map_over_dataset
def multiple_choice(
    example: text_formats.Example,
    text_keys: Sequence[str],
    choice_keys: Sequence[str],
    task_name: str,
    label_names: Sequence[str],
) -> text_formats.Example:
  """Several choices as 'task key: text choice1: a choice2: b' and 'choice1'.

  Args:
    example: an example with texts, choices and the number of the right one in
      `label`; -1, which stands for none, is '<unk>'.
    text_keys: fields of the texts.
    choice_keys: fields of the choices, or one field that holds all.
    task_name: the first word.
    label_names: the words of the choices; as many as there are choices.

  Returns:
    `inputs` and `targets`.
  """
  choices = [text_formats.field(example, key) for key in choice_keys]
  given = choices[0] if len(choices) == 1 else tf.stack(choices)
  named = tf.strings.join([list(label_names), given], separator=': ')
  parts = [task_name]
  for key in text_keys:
    parts += [f'{key}:', text_formats.field(example, key)]
  parts.append(tf.strings.reduce_join(named, separator=' '))
  return {
      'inputs': text_formats.join(parts),
      'targets': text_formats.label_text(
          text_formats.field(example, 'label'), label_names)}


def race_questions(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """RACE; one example for every question about an article.

  Args:
    dataset: examples of RACE.

  Returns:
    Examples with `article`, `question`, `options` and `label`.
  """
  def split(x: text_formats.Example) -> tf.data.Dataset:
    questions = text_formats.field(x, 'questions')
    letters = tf.equal(x['answers'][:, tf.newaxis], ['A', 'B', 'C', 'D'])
    return tf.data.Dataset.from_tensor_slices({
        'article': tf.fill(tf.shape(questions), x['article']),
        'question': questions,
        'options': x['options'].to_tensor(),
        'label': tf.argmax(letters, axis=1)})

  return dataset.flat_map(split)


@seqio.map_over_dataset
def drop_as_mrqa(example: text_formats.Example) -> text_formats.Example:
  """DROP with the names that MRQA's datasets have."""
  answers = tf.concat([
      text_formats.field(example, 'answer')[tf.newaxis],
      text_formats.field(example, 'validated_answers')], axis=0)
  return {'qid': example['query_id'], 'question': example['question'],
          'context': example['passage'], 'answers': answers}


@seqio.map_over_dataset
def polarity_as_label(example: text_formats.Example) -> text_formats.Example:
  """Sentiment140: 0, 2 and 4 as the labels 0, 1 and 2."""
  return {'text': text_formats.field(example, 'text'),
          'label': text_formats.field(example, 'polarity') // 2}


@seqio.map_over_dataset
def emotions(
    example: text_formats.Example,
    text_key: str,
    label_names: Sequence[str],
    task_name: str,
) -> text_formats.Example:
  """Several labels at once as 'task text: ...' and 'joy, love'.

  Args:
    example: an example with a text and a truth value for every label.
    text_key: field of the text.
    label_names: fields of the labels, in the order of the target.
    task_name: the first word.

  Returns:
    `inputs` and `targets`.
  """
  holds = tf.stack([text_formats.field(example, name) for name in label_names])
  return {
      'inputs': text_formats.join([
          task_name, f'{text_key}:', text_formats.field(example, text_key)]),
      'targets': tf.strings.reduce_join(
          tf.boolean_mask(list(label_names), holds), separator=', ')}


@seqio.map_over_dataset
def similarity(
    example: text_formats.Example, task_name: str) -> text_formats.Example:
  """The likeness of two sentences in the format of `text_formats.stsb`."""
  return text_formats.similarity(example, task_name)


@seqio.map_over_dataset
def dialog_acts(example: text_formats.Example) -> text_formats.Example:
  """GEM's schema-guided dialogues: what is to be said, as texts.

  Args:
    example: an example with `dialog_acts`, `prompt` (what the other side
      said), `target` and `references`.

  Returns:
    The example with `source`: what is to be said, as 'INFORM time = 7 pm,
    8 pm', then the prompt.
  """
  acts = text_formats.field(example, 'dialog_acts')
  values = tf.strings.reduce_join(acts['values'], axis=-1, separator=', ')
  said = tf.strings.join(
      [tf.gather(_DIALOG_ACTS, acts['act']), acts['slot'], '=', values],
      separator=' ')
  # An act without a slot is its name alone.
  said = tf.strings.regex_replace(said, r'[ =]+$', '')
  return {**example, 'source': [
      tf.strings.reduce_join(said, separator='; '), example['prompt']]}


@seqio.map_over_dataset
def data_to_text(
    example: text_formats.Example, task_name: str, source_key: str = 'source'
) -> text_formats.Example:
  """GEM: 'task generate: source' and a text that says it.

  Args:
    example: an example with a source, `target` and `references`.
    task_name: the first word.
    source_key: field of the source: a text, or several that are joined with
      ' | '.

  Returns:
    `inputs`, `targets` and, for the metric, `references`: all texts that are
    right, the target if there are no others.
  """
  source = text_formats.field(example, source_key)
  source = tf.strings.reduce_join(
      tf.reshape(source, [-1]), separator=' | ')
  target = text_formats.field(example, 'target')
  references = text_formats.field(example, 'references')
  return {
      'inputs': text_formats.join([task_name, 'generate:', source]),
      'targets': target,
      'references': tf.cond(
          tf.size(references) > 0, lambda: references,
          lambda: target[tf.newaxis])}
