"""Text formats of SPoT's tasks that no other package has."""

from collections.abc import Sequence

from prompt_tuning.data import text_formats
import seqio
import tensorflow as tf


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
