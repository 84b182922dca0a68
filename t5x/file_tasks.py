"""SeqIO tasks over a file of inputs, with no task to write first.

    .txt      an input per line
    .jsonl    a JSON object per line; fields are chosen by name
    .tsv      columns under a line of names; no quoting

The whole file is checked before anything is computed. It is data: nothing of it
is evaluated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import hashlib
import json
import pathlib
import re
from typing import Any

from etils import epath
import seqio
from t5x import datasets
import tensorflow as tf

SPLIT = 'infer'
Row = dict[str, str]
# From the text of a file and a field's name per feature to rows.
Parser = Callable[[Sequence[str], Mapping[str, str], str], Iterator[Row]]


def _parse_text(
    lines: Sequence[str], fields: Mapping[str, str], path: str
) -> Iterator[Row]:
  """Every line is an input."""
  if set(fields) != {'inputs'}:
    raise datasets.DatasetError(
        f'{path} is plain text, which has inputs only; give TARGET_FIELD with '
        'a .jsonl or .tsv file.')
  for line in lines:
    yield {'inputs': line}


def _parse_jsonl(
    lines: Sequence[str], fields: Mapping[str, str], path: str
) -> Iterator[Row]:
  """Every line is an object with the fields."""
  for number, line in enumerate(lines, 1):
    try:
      found = json.loads(line)
    except json.JSONDecodeError as error:
      raise datasets.DatasetError(
          f'{path}, line {number}, column {error.colno}: no JSON '
          f'({error.msg}); expected one object per line.') from error
    if not isinstance(found, dict):
      raise datasets.DatasetError(
          f'{path}, line {number}: expected a JSON object, found '
          f'{type(found).__name__}.')
    for name in fields.values():
      if not isinstance(found.get(name), str):
        raise datasets.DatasetError(
            f'{path}, line {number}: expected a text {name!r}, found '
            f'{json.dumps(found.get(name))[:40]}; the fields are '
            f'{sorted(found)}. Name it with INPUT_FIELD or TARGET_FIELD.')
    yield {feature: found[name] for feature, name in fields.items()}


def _parse_tsv(
    lines: Sequence[str], fields: Mapping[str, str], path: str
) -> Iterator[Row]:
  """The first line names the columns."""
  header = lines[0].split('\t')
  for name in fields.values():
    if header.count(name) != 1:
      raise datasets.DatasetError(
          f'{path}, line 1: expected one column {name!r}, found the columns '
          f'{header}. Name it with INPUT_FIELD or TARGET_FIELD.')
  for number, line in enumerate(lines[1:], 2):
    cells = line.split('\t')
    if len(cells) != len(header):
      raise datasets.DatasetError(
          f'{path}, line {number}: {len(cells)} columns, but line 1 names '
          f'{len(header)}.')
    yield {feature: cells[header.index(name)]
           for feature, name in fields.items()}


_PARSERS: dict[str, Parser] = {
    '.txt': _parse_text, '.jsonl': _parse_jsonl, '.tsv': _parse_tsv}


def read_rows(
    path: str, fields: Mapping[str, str]) -> tuple[list[Row], str]:
  """The rows of a file.

  Args:
    path: see the module; local or remote.
    fields: from feature to the name of its field or column.

  Returns:
    From feature to text, per row; and the SHA-256 of the file.

  Raises:
    DatasetError: naming file, line and column of what cannot be used.
  """
  file = epath.Path(path)
  parser = _PARSERS.get(pathlib.PurePath(path).suffix)
  if parser is None:
    raise datasets.DatasetError(
        f'INPUT_FILE {path}: expected a name that ends in '
        f'{", ".join(_PARSERS)}.')
  if not file.exists() or file.is_dir():
    raise datasets.DatasetError(
        f'INPUT_FILE {path} does not exist or is a folder.')
  content = file.read_bytes()
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    column = error.start - content.rfind(b'\n', 0, error.start)
    raise datasets.DatasetError(
        f'{path}, line {line}, byte {column}: no UTF-8; convert the file.'
    ) from error
  lines = [line.removesuffix('\r')
           for line in text.removesuffix('\n').split('\n')]
  rows = list(parser(lines, fields, path)) if text.strip() else []
  if not rows:
    raise datasets.DatasetError(f'{path} is empty; expected at least one row.')
  return rows, hashlib.sha256(content).hexdigest()


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
    path: `.txt`, `.jsonl` or `.tsv`; see the module.
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
