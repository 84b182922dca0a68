"""A task made of local files, with no task to write: `runs/from_files.gin`.

    {"question": "...", "label": 1}     a row of train.jsonl
    'ask: {question}'                   inputs
    '{label}'                           targets
    ['no', 'yes']                       label words: the target is 'yes'

Files are read and checked as a whole when the task is made; `t5x.table_files`
says which can be.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import hashlib
import json
import string
from typing import Any

import seqio
from t5x import datasets
from t5x import table_files
import tensorflow as tf

Labels = Sequence[str] | Mapping[str, str]
Texts = Mapping[str, str]


def task(
    files: Mapping[str, str],
    inputs: str,
    targets: str,
    features: Mapping[str, seqio.Feature],
    *,
    labels: Labels | None = None,
    metrics: Sequence[Callable[..., Any]] = (),
    postprocessor: Callable[..., Any] | None = None,
    name: str = 'from_files',
) -> str:
  """Registers a task over files; asked again, gives the same one.

  Args:
    files: from split to path.
    inputs: the text of the inputs, with columns in braces.
    targets: that of the targets.
    features: vocabularies of `inputs` and `targets`.
    labels: the words that targets may be. With a sequence, a target that is a
      whole number counts into it, from 0; a mapping gives the word of every
      value. None lets targets be anything.
    metrics: SeqIO metrics.
    postprocessor: SeqIO's, of targets and predictions; None leaves texts.
    name: how the task's name begins.

  Returns:
    The task's name; it ends in ten digits of what makes the task.

  Raises:
    DatasetError: naming file, line and column of what cannot be used.
  """
  templates = {'inputs': inputs, 'targets': targets}
  columns = {name: _columns(name, text) for name, text in templates.items()}
  if not files:
    raise datasets.DatasetError(
        "from_files.task.files is empty; expected for instance {'train': "
        "'train.jsonl', 'validation': 'dev.jsonl'}.")
  rows: dict[str, list[Texts]] = {}
  identities = []
  for split, path in files.items():
    table = table_files.read(path, f'the file of {split!r},')
    wanted = {name for names in columns.values() for name in names}
    table.require_columns(sorted(wanted), 'Mend INPUTS or TARGETS.')
    rows[split] = [_texts(row, templates, columns, labels)
                   for row in table.rows]
    identities.append((split, table.identity))
  made_of = json.dumps([identities, inputs, targets, _plain(labels), [
      _path(function) for function in (*metrics, postprocessor)]])
  full_name = f'{name}_{hashlib.sha256(made_of.encode()).hexdigest()[:10]}'
  if full_name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(full_name)  # The same, for features made anew.
  seqio.TaskRegistry.add(
      full_name,
      source=seqio.FunctionDataSource(
          functools.partial(_dataset, rows), splits=list(files),
          num_input_examples={k: len(v) for k, v in rows.items()}),
      preprocessors=[seqio.preprocessors.tokenize,
                     seqio.preprocessors.append_eos_after_trim],
      output_features=features,
      postprocess_fn=postprocessor,
      metric_fns=list(metrics))
  return full_name


def _columns(name: str, template: str) -> list[str]:
  """The columns that a template takes.

  Raises:
    DatasetError: if it takes none, or wants more of them than their text.
  """
  try:
    parts = list(string.Formatter().parse(template))
  except ValueError as error:
    raise datasets.DatasetError(
        f'from_files.task.{name} is {template!r}: {error}. Write a brace that '
        'is text twice.') from error
  columns = [field for _, field, _, _ in parts if field is not None]
  plain = all(not form and not conversion for _, _, form, conversion in parts)
  if not columns or not plain or not all(
      column and not set(column) & set('.[]') for column in columns):
    raise datasets.DatasetError(
        f'from_files.task.{name} is {template!r}; expected a text with columns '
        "in braces, and no more than their names, as 'question: {question}'.")
  return columns


def _texts(
    row: table_files.Row,
    templates: Mapping[str, str],
    columns: Mapping[str, Sequence[str]],
    labels: Labels | None,
) -> Texts:
  """Inputs and targets of a row."""
  texts = {name: template.format_map({
      column: _text(row, column) for column in columns[name]})
           for name, template in templates.items()}
  if labels is not None:
    texts['targets'] = _label(row, texts['targets'], columns, labels)
  return texts


def _text(row: table_files.Row, column: str) -> str:
  """A cell as text; numbers and truth values of JSON as JSON writes them."""
  value = row.cells.get(column)
  if isinstance(value, str):
    return value
  if isinstance(value, bool | int | float):
    return json.dumps(value)
  found = json.dumps(value)[:40] if column in row.cells else 'none of that name'
  raise datasets.DatasetError(
      f'{row.place}, column {column!r}: expected a text or a number, found '
      f'{found}; the columns are {sorted(row.cells)}.')


def _label(
    row: table_files.Row,
    found: str,
    columns: Mapping[str, Sequence[str]],
    labels: Labels,
) -> str:
  """The label word of a row."""
  if isinstance(labels, Mapping):
    words = {str(value): word for value, word in labels.items()}
  else:
    words = {str(index): word for index, word in enumerate(labels)}
    words |= {word: word for word in labels}
  if found not in words:
    raise datasets.DatasetError(
        f'{row.place}, column {", ".join(map(repr, columns["targets"]))}: '
        f'{found!r} is no label; expected one of {sorted(words)}.')
  return words[found]


def _plain(labels: Labels | None) -> Any:
  """Labels as JSON knows them."""
  return dict(labels) if isinstance(labels, Mapping) else labels and [*labels]


def _path(function: Any) -> str:
  """Names a function by where it is defined."""
  inner = getattr(function, 'func', function)
  return '.'.join(str(getattr(inner, name, ''))
                  for name in ('__module__', '__qualname__'))


def _dataset(
    rows: Mapping[str, Sequence[Texts]],
    split: str,
    shuffle_files: bool = False,
    seed: int | None = None,
) -> tf.data.Dataset:
  """The rows of a split; there is one file, so none to shuffle."""
  del shuffle_files, seed
  return tf.data.Dataset.from_tensor_slices({
      name: [row[name] for row in rows[split]] for name in rows[split][0]})
