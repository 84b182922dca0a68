"""From the text that a model wrote, or a target's, to what metrics compare.

Every function is called as SeqIO calls it: with the text, and by name with
`example` and `is_target`. Names and results are those of the T5 package and of
the published prompt tuning tasks.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

from prompt_tuning.data import constants

Example = Mapping[str, Any]

# Words that do not tell one referent from another.
_DETERMINERS = frozenset((
    'a', 'an', 'the', 'this', 'that', 'these', 'those', 'my', 'your', 'his',
    'her', 'our', 'their', 'some', 'many', 'much', 'few', 'each', 'every',
    'which', 'whose'))


def as_text(value: str | bytes) -> str:
  """A text as such; TensorFlow hands out bytes."""
  return value.decode('utf-8') if isinstance(value, bytes) else value


def identity(value: Any, *args: Any, **kwargs: Any) -> Any:
  """The text itself."""
  del args, kwargs
  return value


def string_label_to_class_id(
    string_label: str,
    label_classes: Sequence[str],
    default: int = -1,
    **unused_kwargs: Any,
) -> int:
  """The index of a label word.

  Args:
    string_label: what was written.
    label_classes: the label words.
    default: for anything else.
    **unused_kwargs: what SeqIO passes.

  Returns:
    The index.
  """
  classes = list(label_classes)
  return classes.index(string_label) if string_label in classes else default


def string_to_float(
    string: str, default: float = -1.0, **unused_kwargs: Any) -> float:
  """The number that a text is.

  Args:
    string: what was written.
    default: for anything else, 'nan' and 'inf' among it, which would turn
      every score into nothing.
    **unused_kwargs: what SeqIO passes.

  Returns:
    The number.
  """
  try:
    number = float(string)
  except ValueError:
    return default
  return number if math.isfinite(number) else default


def lower_text(string: str, **unused_kwargs: Any) -> str:
  """The text in lower case."""
  return string.lower()


def multirc(
    string_label: str,
    example: Example | None = None,
    is_target: bool = False,
) -> dict[str, Any]:
  """The class of an answer and, for targets, the question it belongs to."""
  value = string_label_to_class_id(
      string_label, label_classes=('False', 'True'))
  if not is_target:
    return {'value': value}
  return {'value': value, 'group': int(_example(example)['idx/question'])}


def record(
    answer: str, example: Example | None = None, is_target: bool = False
) -> dict[str, Any]:
  """The answer or, for targets, all answers and the query they belong to."""
  if not is_target:
    return {'value': answer}
  example = _example(example)
  return {
      'value': [as_text(a) for a in example['answers']],
      'group': (int(example['idx/passage']), int(example['idx/query'])),
  }


def qa(
    answer: str, example: Example | None = None, is_target: bool = False
) -> str | list[str]:
  """The answer or, for targets, all answers."""
  if not is_target:
    return answer
  return [as_text(a) for a in _example(example)['answers']]


def references(
    text: str, example: Example | None = None, is_target: bool = False
) -> Any:
  """The text or, for targets, all `references` of the example."""
  if not is_target:
    return text
  return [as_text(r) for r in _example(example)['references']]


def wsc_simple(
    prediction: str, example: Example | None = None, is_target: bool = False
) -> int:
  """Whether the referent was named; for targets, whether it is the right one.

  Determiners and case do not count. A referent is named by some of its words,
  or by more than its words, but 'Bob' is not "Bob's hat".

  Args:
    prediction: the text that was written.
    example: has `targets_pretokenized`, the referent, and `label`.
    is_target: whether this is a target.

  Returns:
    1 if it was named, else 0; -1 if nothing was written. For targets the
    label.
  """
  example = _example(example)
  if is_target:
    return int(example['label'])
  predicted = _content_words(prediction)
  if not predicted:
    return -1
  referent = _content_words(as_text(example[constants.TARGET_TEXT]))
  if not referent or _possessive(predicted) != _possessive(referent):
    return 0
  return int(predicted <= referent or referent <= predicted)


def _example(example: Example | None) -> Example:
  """The example that a postprocessor cannot do without."""
  if example is None:
    raise ValueError(
        'This postprocessor needs the example; call it with example=... as '
        'SeqIO does.')
  return example


def _content_words(text: str) -> set[str]:
  """The words without determiners, in lower case."""
  return set(text.lower().split()) - _DETERMINERS


def _possessive(words: set[str]) -> bool:
  """Whether there is an apostrophe."""
  return any("'" in word for word in words)


def remove_extra_id_0(
    decoded_model_output: str, *args: Any, **kwargs: Any) -> str:
  """Removes a leading '<extra_id_0>' and the white space at the beginning."""
  del args, kwargs
  return decoded_model_output.removeprefix(constants.EXTRA_ID_0).lstrip()


def mrpc_to_qqp(decoded_model_output: str, *args: Any, **kwargs: Any) -> str:
  """A label of MRPC as QQP's: '(not_)equivalent' as '(not_)duplicate'."""
  del args, kwargs
  return decoded_model_output.replace(
      constants.EQUIVALENT, constants.DUPLICATE)


def qqp_to_mrpc(decoded_model_output: str, *args: Any, **kwargs: Any) -> str:
  """A label of QQP as MRPC's: '(not_)duplicate' as '(not_)equivalent'."""
  del args, kwargs
  return decoded_model_output.replace(
      constants.DUPLICATE, constants.EQUIVALENT)


def sequential(*funcs: Callable[..., Any]) -> Callable[..., Any]:
  """One postprocessor that hands the result of each to the next."""
  def execute(x: Any, *args: Any, **kwargs: Any) -> Any:
    for func in funcs:
      x = func(x, *args, **kwargs)
    return x

  return execute


def postprocess_with_examples(
    postprocess_func: Callable[..., Any],
    decoded_model_output: Any,
    prediction_field: str = constants.PREDICTION,
    prediction_text_field: str = constants.PREDICTION_TEXT,
    example_fields: Sequence[str] = (
        constants.INPUT_TEXT, constants.TARGET_TEXT),
    decoded_model_output_field: str | None = None,
    **kwargs: Any,
) -> Any:
  """Keeps what a prediction was made from, for `metrics.text_examples`.

  Args:
    postprocess_func: postprocessor of the text.
    decoded_model_output: the text, or what an earlier stage made of it.
    prediction_field: where the postprocessed prediction goes.
    prediction_text_field: where the text goes.
    example_fields: fields of the example, or else of the earlier stage, that
      are kept; None where there is no such field.
    decoded_model_output_field: where the earlier stage, which returned a
      dictionary, has left the text; None if there is none.
    **kwargs: what SeqIO passes: `example` and `is_target`.

  Returns:
    A dictionary of these fields; for a target what `postprocess_func` returns.
  """
  if kwargs.get('is_target', False):
    return postprocess_func(decoded_model_output, **kwargs)
  earlier: Mapping[str, Any] = {}
  if decoded_model_output_field is not None:
    earlier = decoded_model_output
    decoded_model_output = earlier[decoded_model_output_field]
  known = {**earlier, **(kwargs.get('example') or {})}
  return {
      prediction_field: postprocess_func(decoded_model_output, **kwargs),
      prediction_text_field: decoded_model_output,
      **{name: known.get(name) for name in example_fields},
  }
