"""SeqIO tasks over a file of inputs, with no task to write first.

`t5x.table_files` says what files can be read. The whole file is checked before
anything is computed.
"""

from collections.abc import Mapping, Sequence
import functools
import hashlib
import pathlib
import re
from typing import Any

import seqio
from t5x import datasets
from t5x import table_files
import tensorflow as tf

SPLIT = 'infer'
Row = dict[str, str]


def read_rows(
    path: str, fields: Mapping[str, str]) -> tuple[list[Row], str]:
  """The rows of a file.

  Args:
    path: see `t5x.table_files`; local or remote.
    fields: from feature to the name of its field or column.

  Returns:
    From feature to text, per row; and the SHA-256 of the file.

  Raises:
    DatasetError: naming file, line and column of what cannot be used.
  """
  table = table_files.read(path, 'INPUT_FILE')
  if path.endswith('.txt'):
    if set(fields) != {'inputs'}:
      raise datasets.DatasetError(
          f'{path} is plain text, which has inputs only; give TARGET_FIELD '
          'with a .jsonl, .csv or .tsv file.')
    fields = {'inputs': 'inputs'}
  hint = 'Name it with INPUT_FIELD or TARGET_FIELD.'
  table.require_columns(list(fields.values()), hint)
  return [{feature: row.text(name, hint) for feature, name in fields.items()}
          for row in table.rows], table.identity


class RowSource(seqio.DataSource):
  """Rows in memory.

  Attributes:
    identity: names their content.
    has_targets: whether rows have targets to score.
  """

  def __init__(self, rows: Sequence[Row], identity: str, has_targets: bool):
    self.identity = identity
    self.has_targets = has_targets
    self._rows = rows
    super().__init__(
        splits=[SPLIT], num_input_examples={SPLIT: len(rows)},
        caching_permitted=False)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """SeqIO shards the examples itself."""
    return False

  def list_shards(self, split: str) -> Sequence[str]:
    """One shard."""
    return [split]

  def get_dataset(self, *unused_args: Any, **unused_options: Any):
    """All rows; names and numbers of arguments are SeqIO's."""
    return tf.data.Dataset.from_tensor_slices({
        name: [row[name] for row in self._rows] for name in self._rows[0]})


def _with_labels(
    dataset: tf.data.Dataset, labels: Sequence[str]) -> tf.data.Dataset:
  """Every example once with every label as its targets."""
  return dataset.flat_map(lambda example: tf.data.Dataset.from_tensor_slices({
      **{name: tf.repeat(value[None], len(labels), axis=0)
         for name, value in example.items()},
      'targets': list(labels)}))


def _with_targets(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Adds empty targets where there are none: only their length is needed."""
  return dataset.map(
      lambda example: {'targets': tf.zeros([0], tf.int32), **example})


def make_task(
    name: str,
    rows: Sequence[Row],
    features: Mapping[str, seqio.Feature],
    *,
    labels: Sequence[str] | None = None,
    identity: str = '',
) -> seqio.Task:
  """A task over rows, split 'infer'; it is not registered.

  Args:
    name: how outputs are called; other than word characters become `_`.
    rows: texts of `inputs` and perhaps of `targets`.
    features: vocabularies of both.
    labels: makes an example of every row and label, the labels as targets.
    identity: names the content of the rows.

  Returns:
    The task.
  """
  has_targets = labels is not None or 'targets' in rows[0]
  steps = [seqio.preprocessors.tokenize, _with_targets,
           seqio.preprocessors.append_eos_after_trim]
  if labels is not None:
    steps.insert(0, functools.partial(_with_labels, labels=labels))
  return seqio.Task(
      re.sub(r'\W', '_', name),
      source=RowSource(rows, identity, has_targets),
      preprocessors=steps,
      output_features=features)


def create_task_from_file(
    path: str,
    features: Mapping[str, seqio.Feature],
    input_field: str = 'inputs',
    target_field: str | None = None,
    labels: Sequence[str] | None = None,
) -> seqio.Task:
  """A task over a file, for `DatasetConfig.mixture_or_task_name`.

  Args:
    path: see `t5x.table_files`.
    features: vocabularies of `inputs` and `targets`.
    input_field: the field or column of the inputs.
    target_field: that of the targets; None if there are none.
    labels: makes an example of every input and label, to be scored.

  Returns:
    A task with the split 'infer', named after the file.

  Raises:
    DatasetError: naming file, line and column of what cannot be used.
  """
  fields = {'inputs': input_field}
  if target_field is not None:
    fields['targets'] = target_field
  if labels is not None and target_field is not None:
    raise datasets.DatasetError(
        'LABELS and TARGET_FIELD are both set; labels take the place of the '
        'targets.')
  rows, identity = read_rows(path, fields)
  return make_task(
      pathlib.PurePath(path).stem, rows, features, labels=labels,
      identity=identity)


def create_task_from_tfexample_file(
    paths: Sequence[str],
    file_type: str,
    inputs_key: str,
    targets_key: str | None,
    features: Mapping[str, seqio.Feature],
    task_id: str | None = None,
) -> str:
  """Registers a task over files of TFExamples; T5X's name and arguments.

  Args:
    paths: the files.
    file_type: 'tfrecord'; others were never published.
    inputs_key: the field of the inputs, a text.
    targets_key: that of the targets; None if there are none.
    features: vocabularies of `inputs` and `targets`.
    task_id: ends the name; by default it is made of the other arguments.

  Returns:
    The name, `infer_<task_id>`; its split is 'infer'.

  Raises:
    DatasetError: for another type, or if a file is not there.
  """
  if file_type != 'tfrecord':
    raise datasets.DatasetError(
        f'TF_EXAMPLE_FILE_TYPE is {file_type!r}; only tfrecord can be read.')
  if missing := [path for path in paths if not tf.io.gfile.glob(path)]:
    raise datasets.DatasetError(f'{missing[0]} does not exist.')
  keys = {'inputs': inputs_key}
  if targets_key is not None:
    keys['targets'] = targets_key
  if task_id is None:
    text = ':'.join([*paths, inputs_key, targets_key or ''])
    task_id = hashlib.md5(text.encode()).hexdigest()[:10]
  name = f'infer_{task_id}'
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)  # The same files, asked for again.
  source = seqio.TFExampleDataSource(
      {SPLIT: list(paths)},
      {key: tf.io.FixedLenFeature([], tf.string) for key in keys.values()})
  source.has_targets = targets_key is not None
  seqio.TaskRegistry.add(
      name,
      source=source,
      preprocessors=[
          functools.partial(seqio.preprocessors.rekey, key_map=keys),
          seqio.preprocessors.tokenize, _with_targets,
          seqio.preprocessors.append_eos],
      output_features=features)
  return name
