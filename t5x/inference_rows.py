"""Results of a model as rows of JSON, in T5X's shape.

{"inputs": {"inputs_pretokenized": ...}, "prediction": "..."}
{"inputs": {...}, "prediction": "...", "aux": {"scores": -1.5}}
{"inputs": {...}, "score": -1.5}
{"inputs": {...}, "label": "yes", "scores": {"no": -4.0, "yes": -0.1}}
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
from typing import Any

from etils import epath
import numpy as np

# Results in order, and what else is known of them, by name in the same order.
Inferences = tuple[Sequence[Any], Mapping[str, Any]]


def plain(value: Any) -> Any:
  """A value as JSON knows it: texts, numbers, lists, dictionaries."""
  if isinstance(value, bytes):
    return value.decode('utf-8', 'replace')
  if isinstance(value, Mapping):
    return {str(name): plain(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [plain(part) for part in value]
  if hasattr(value, 'to_list'):  # A ragged tensor's value.
    return plain(value.to_list())
  if isinstance(value, np.ndarray | np.generic):
    return plain(value.tolist())
  return value


def decoded(
    tokens: Any, vocabulary: Any) -> str | list[str]:
  """Tokens as text; of several decodes as several texts."""
  tokens = np.asarray(tokens)
  if tokens.ndim > 1:
    return [vocabulary.decode(row.tolist()) for row in tokens]
  return vocabulary.decode(tokens.tolist())


def without_padding(tokens: Any) -> list[Any]:
  """Tokens before the first 0, for every decode."""
  tokens = np.asarray(tokens)
  if tokens.ndim > 1:
    return [without_padding(row) for row in tokens]
  padding = np.flatnonzero(tokens == 0)
  return tokens[:padding[0] if len(padding) else None].tolist()


def shown_inputs(
    example: Mapping[str, Any],
    include_all_inputs: bool,
    input_fields_to_include: Sequence[str] | None,
) -> dict[str, Any]:
  """The fields of an example that stand in its row.

  Args:
    example: all of its fields.
    include_all_inputs: show all.
    input_fields_to_include: show these; by default those that end in
      `_pretokenized`.

  Returns:
    Plain values.

  Raises:
    ValueError: if both are given, or a field does not exist.
  """
  if include_all_inputs and input_fields_to_include is not None:
    raise ValueError(
        'write_inferences_to_file: give include_all_inputs or '
        'input_fields_to_include, not both.')
  names = [name for name in example
           if include_all_inputs or name.endswith('_pretokenized')]
  if input_fields_to_include is not None:
    names = list(input_fields_to_include)
  if unknown := [name for name in names if name not in example]:
    raise ValueError(
        'write_inferences_to_file.input_fields_to_include names '
        f'{unknown[0]!r}; the examples have {sorted(example)}.')
  return {name: plain(example[name]) for name in names}


def aux_of_row(aux: Mapping[str, Any], row: int) -> dict[str, Any]:
  """What is known of one row besides its result.

  Args:
    aux: from name to values whose first axis is the rows; they may be nested.
    row: which one.

  Returns:
    Plain values.
  """
  def of_row(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {name: of_row(part) for name, part in value.items()}
    if isinstance(value, tuple):
      return [of_row(part) for part in value]
    return plain(value[row])

  return {name: of_row(value) for name, value in aux.items()}


def rankings(
    examples: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    labels: Sequence[str],
) -> Iterator[dict[str, Any]]:
  """One row per example that was scored once with every label.

  Args:
    examples: an example per score; those of one example follow each other.
    scores: log likelihoods, in the order of the labels within an example.
    labels: the labels.

  Yields:
    The best label and all scores.
  """
  for start in range(0, len(examples), len(labels)):
    of_example = scores[start:start + len(labels)]
    by_label = {label: float(score) for label, score in zip(
        labels, of_example, strict=True)}
    inputs = shown_inputs(examples[start], False, None)
    inputs.pop('targets_pretokenized', None)  # The first label, not a target.
    yield {'inputs': inputs, 'label': max(by_label, key=by_label.__getitem__),
           'scores': by_label}


def write(path: str, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes one JSON object per line."""
  with epath.Path(path).open('w') as stream:
    for row in rows:
      stream.write(json.dumps(row, ensure_ascii=False) + '\n')
