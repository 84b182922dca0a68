"""Examples of a dataset as the texts that T5 reads and writes.

Each function goes from a `tf.data.Dataset` of one dataset's examples to one
with `inputs`, `targets` and what the metric needs. Names, parameters and texts
are those of the T5 package; released models were trained on these texts, so a
changed space is a changed task.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.data import constants
import seqio
import tensorflow as tf

Example = Mapping[str, Any]

# Two sentences of WSC whose pronoun is not the word at `span2_index`: before
# the pronoun, between it and the rest, the rest.
_WSC_REPAIRS = (
    ('The boy continued to whip the pony , and eventually the pony threw him '
     'over. John laughed out quite loud. "Good for', '', ',"', ' he said.'),
    ('When they had eventually calmed down a bit , and had gotten home, Mr. '
     'Farley put the magic pebble in an iron safe . Some day they might want '
     'to use', ' ', ',', ' but really for now, what more could they wish for?'),
)

# English names of the languages of WMT.
_LANGUAGES = {
    'cs': 'Czech', 'de': 'German', 'en': 'English', 'et': 'Estonian',
    'fi': 'Finnish', 'fr': 'French', 'gu': 'Gujarati', 'hi': 'Hindi',
    'kk': 'Kazakh', 'lt': 'Lithuanian', 'lv': 'Latvian', 'ro': 'Romanian',
    'ru': 'Russian', 'tr': 'Turkish', 'zh': 'Chinese'}


def field(example: Example, key: str) -> tf.Tensor:
  """A field of an example.

  Args:
    example: an example.
    key: name of the field.

  Returns:
    Its value.

  Raises:
    ValueError: if the example has no such field.
  """
  if key not in example:
    raise ValueError(
        f'Examples have no field {key!r}; they have {sorted(example)}. Name '
        'one of these, or use the dataset that the text format is for.')
  return example[key]


def pad_punctuation(text: tf.Tensor) -> tf.Tensor:
  """Puts a space on both sides of ASCII punctuation; white space is one space.

  Args:
    text: texts of any shape.

  Returns:
    The texts; a mark at the end is followed by a space.
  """
  text = tf.strings.regex_replace(text, r'([[:punct:]])', r' \1 ')
  return tf.strings.regex_replace(text, r'\s+', ' ')


def join(parts: Sequence[Any]) -> tf.Tensor:
  """Joins texts with a space; all white space becomes single spaces."""
  return tf.strings.regex_replace(
      tf.strings.join(parts, separator=' '), r'\s+', ' ')


def label_text(label: tf.Tensor, label_names: Sequence[str]) -> tf.Tensor:
  """The word of a label; '<unk>' for -1, which stands for no label."""
  return tf.gather([constants.UNKNOWN, *label_names], label + 1)


@seqio.map_over_dataset
def rekey(
    x: Example, key_map: Mapping[str, str | None] | None = None) -> Example:
  """Renames fields and drops the others.

  Args:
    x: an example.
    key_map: from new name to old name; None makes an empty text.

  Returns:
    The example with the new names; unchanged without `key_map`.
  """
  if not key_map:
    return x
  return {new: field(x, old) if old else '' for new, old in key_map.items()}


@seqio.map_over_dataset
def glue(
    x: Example,
    benchmark_name: str,
    label_names: Sequence[str],
    feature_names: Sequence[str] | None = None,
    id_key: str | None = 'idx',
) -> Example:
  """Classification in the format of GLUE: 'name key1: text1 key2: text2'.

  Args:
    x: an example with texts and `label`.
    benchmark_name: the first word. 'multirc' has its markup removed and its
      index kept in three fields.
    label_names: the word of each label; a label of -1 is '<unk>'.
    feature_names: the texts in order; sorted by name if None.
    id_key: field that becomes `idx`; none is kept if None.

  Returns:
    `inputs`, `targets` and the index.
  """
  keys = feature_names or sorted(set(x) - {'label', 'idx', id_key})
  parts = [benchmark_name]
  for key in keys:
    parts += [f'{key}:', field(x, key)]
  inputs = tf.strings.join(parts, separator=' ')
  if benchmark_name == 'multirc':
    inputs = tf.strings.regex_replace(inputs, '<br>', ' ')
    inputs = tf.strings.regex_replace(inputs, '</?b>', '')
    index = {f'idx/{part}': x['idx'][part]
             for part in ('paragraph', 'question', 'answer')}
  else:
    index = {'idx': field(x, id_key)} if id_key else {}
  return {
      'inputs': inputs,
      'targets': label_text(field(x, 'label'), label_names),
      **index,
  }


def similarity(x: Example, name: str) -> dict[str, Any]:
  """How alike two sentences are, to the nearest fifth, as '3.8'."""
  return {
      'inputs': tf.strings.join(
          [f'{name} sentence1:', field(x, 'sentence1'), 'sentence2:',
           field(x, 'sentence2')], separator=' '),
      'targets': tf.strings.as_string(
          tf.round(field(x, 'label') * 5) / 5, precision=1),
  }


@seqio.map_over_dataset
def stsb(x: Example) -> Example:
  """STS-B: `similarity` with the index."""
  return similarity(x, 'stsb') | {'idx': x['idx']}


@seqio.map_over_dataset
def squad(x: Example, include_context: bool = True) -> Example:
  """SQuAD: 'question: ... context: ...', punctuation apart.

  Args:
    x: an example in SQuAD's layout.
    include_context: whether the context is read; without it the question is
      to be answered from memory, after 'squad trivia question:'.

  Returns:
    `inputs`, `targets` (the first answer), and for the metric `answers`,
    `context`, `question` and `id`.
  """
  answers = pad_punctuation(field(x, 'answers')['text'])
  question = pad_punctuation(field(x, 'question'))
  context = pad_punctuation(field(x, 'context'))
  if include_context:
    inputs = join(['question:', question, 'context:', context])
  else:
    inputs = join(['squad trivia question:', question])
  return {
      'inputs': inputs,
      'targets': answers[0],
      'answers': answers,
      'context': context,
      'question': question,
      'id': x['id'],
  }


@seqio.map_over_dataset
def summarize(x: Example, article_key: str, summary_key: str) -> Example:
  """Summarisation: 'summarize: article'."""
  return {
      'inputs': tf.strings.join(
          ['summarize:', field(x, article_key)], separator=' '),
      'targets': field(x, summary_key),
  }


@seqio.map_over_dataset
def translate(
    x: Example, source_language: str, target_language: str) -> Example:
  """Translation: 'translate English to German: ...'.

  Args:
    x: an example with a text under the code of each language.
    source_language: code of the language to translate from, as 'en'.
    target_language: code of the language to translate to.

  Returns:
    `inputs` and `targets`.

  Raises:
    ValueError: for a language without a known English name.
  """
  for language in (source_language, target_language):
    if language not in _LANGUAGES:
      raise ValueError(
          f'translate: the English name of {language!r} is not known; expected '
          f'one of {sorted(_LANGUAGES)}.')
  task = (f'translate {_LANGUAGES[source_language]} to '
          f'{_LANGUAGES[target_language]}: ')
  return {'inputs': tf.strings.join([task, field(x, source_language)]),
          'targets': field(x, target_language)}


def record_inputs(x: Example) -> tf.Tensor:
  """ReCoRD: 'record query: ... entities: e1, e2 passage: ...'.

  Highlights follow the passage as sentences of their own.

  Args:
    x: an example with `query`, `entities` and `passage`.

  Returns:
    The text.
  """
  passage = tf.strings.regex_replace(
      field(x, 'passage'), r'([.?!"\'])\n@highlight\n', r'\1 ')
  passage = tf.strings.regex_replace(passage, r'\n@highlight\n', '. ')
  entities = tf.strings.reduce_join(field(x, 'entities'), separator=', ')
  return tf.strings.join(
      ['record query:', field(x, 'query'), 'entities:', entities, 'passage:',
       passage], separator=' ')


def record(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """ReCoRD; one example for every answer.

  Args:
    dataset: examples of ReCoRD.

  Returns:
    Examples with `inputs`, `targets` (an answer, or '<unk>' where none is
    known), all `answers`, `idx/passage` and `idx/query`.
  """
  def split(x: Example) -> tf.data.Dataset:
    answers = field(x, 'answers')
    shared = {
        'inputs': record_inputs(x),
        'answers': answers,
        'idx/passage': x['idx']['passage'],
        'idx/query': x['idx']['query'],
    }
    some = tf.cond(tf.size(answers) > 0, lambda: answers,
                   lambda: tf.constant([constants.UNKNOWN]))
    return tf.data.Dataset.from_tensor_slices(some).map(
        lambda answer: shared | {'targets': answer})

  return dataset.flat_map(split)


def _wsc_inputs(x: Example) -> tf.Tensor:
  """The sentence with asterisks around the pronoun."""
  text, pronoun, index = x['text'], x['span2_text'], x['span2_index']
  words = tf.strings.split(text, sep=' ')
  marked = tf.strings.join(['*', pronoun, '*'])
  found = tf.strings.reduce_join(
      tf.concat([words[:index], [marked], words[index + 1:]], axis=0),
      separator=' ')
  in_place = tf.equal(words[index], pronoun)
  for before, gap, mark, rest in _WSC_REPAIRS:
    original = tf.strings.join([before, ' ', pronoun, gap, mark, rest])
    repaired = tf.strings.join([before, ' ', marked, ' ', mark, rest])
    same = tf.equal(tf.strings.strip(text), original)
    found = tf.where(same, repaired, found)
    in_place |= same
  checked = tf.debugging.Assert(in_place, [
      'WSC: the word at span2_index is not span2_text', text, index, pronoun])
  with tf.control_dependencies([checked]):
    return tf.identity(found)


def wsc_simple(
    dataset: tf.data.Dataset,
    label: str = 'wsc:',
    correct_referent_only: bool = False,
) -> tf.data.Dataset:
  """WSC: a sentence with '*pronoun*'; the target is what it refers to.

  Args:
    dataset: examples of WSC; the pronoun is `span2_text`, the word at
      `span2_index`.
    label: the first word.
    correct_referent_only: leave out examples whose `span1_text` is not what
      the pronoun refers to, as is needed for training.

  Returns:
    Examples with `inputs`, `targets`, `label` and `idx`.
  """
  def convert(x: Example) -> Example:
    return {
        'inputs': tf.strings.join([label, _wsc_inputs(x)], separator=' '),
        'targets': tf.reshape(x['span1_text'], []),
        'label': x.get('label', 0),
        'idx': x['idx'],
    }

  if correct_referent_only:
    dataset = dataset.filter(lambda x: tf.cast(x.get('label', 0), tf.bool))
  return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


@seqio.map_over_dataset
def definite_pronoun_resolution_simple(
    x: Example, label: str = 'wsc:') -> Example:
  """Definite pronoun resolution in the format of `wsc_simple`.

  Args:
    x: an example with `sentence`, `pronoun`, two `candidates` and `label`.
    label: the first word.

  Returns:
    `inputs`, in which the pronoun is marked where it stands first, and
    `targets`.
  """
  pattern = tf.strings.join([' (', x['pronoun'], ')([ .,])'])
  sentence = tf.strings.regex_replace(
      x['sentence'], pattern, r' *\1*\2', replace_global=False)
  return {
      'inputs': tf.strings.join([label, sentence], separator=' '),
      'targets': x['candidates'][x['label']],
  }
