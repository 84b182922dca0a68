"""Looks at the first examples of a task before anything is compiled."""

from collections.abc import Mapping, Sequence
import itertools
import re
from typing import Any

import numpy as np
from t5x import checkpoints
from t5x import datasets
from t5x import published_sizes
from t5x import train_state as train_state_lib

# Enough to see what a task is like, and read in a moment.
SAMPLE = 64

Row = Mapping[str, np.ndarray]


def first_rows(
    config: datasets.DatasetConfig, count: int = SAMPLE) -> list[Row]:
  """The first examples of a split as SeqIO makes them, not cut to length.

  Args:
    config: the task or mixture, and its split.
    count: how many at most.

  Returns:
    Features by name; fewer examples than asked for if there are not more.
  """
  provider = datasets.get_mixture_or_task(config)
  rows = provider.get_dataset(
      config.task_feature_lengths, config.split,
      use_cached=config.use_cached, shuffle=False, seed=config.seed,
      num_epochs=1, trim_output_features=False)
  return list(itertools.islice(rows.as_numpy_iterator(), count))


def cut_features(
    config: datasets.DatasetConfig, rows: Sequence[Row] | None = None
) -> list[str]:
  """Says what `TASK_FEATURE_LENGTHS` cuts off; SeqIO trims without a word.

  Args:
    config: gives the lengths.
    rows: of `first_rows`; None reads them, if there is a length.

  Returns:
    A line for every feature that is cut.
  """
  lines: list[str] = []
  if config.task_feature_lengths is None:
    return lines
  rows = first_rows(config) if rows is None else rows
  features = datasets.get_mixture_or_task(config).output_features
  for name, limit in config.task_feature_lengths.items():
    lengths = [_length(row, name, features[name], limit) for row in rows
               if name in row and row[name].ndim == 1]
    if cut := sum(length > limit for length in lengths):
      lines.append(
          f'note: {100 * cut / len(lengths):.0f} % of the first {len(lengths)} '
          f'examples of {_name(config)} are longer than '
          f'TASK_FEATURE_LENGTHS[{name!r}] = {limit} and are cut; the longest '
          f'has {max(lengths)} tokens')
  return lines


def _length(row: Row, name: str, feature: Any, limit: int) -> int:
  """Tokens of a feature before anything was cut off.

  A preprocessor that trims by itself leaves exactly `limit` tokens; what the
  text would have had then comes from the text, if the row still has it.
  """
  length = len(row[name])
  text: Any = row.get(f'{name}_pretokenized')
  if length != limit or not isinstance(text, bytes):
    return length
  tokens = feature.vocabulary.encode(text.decode())
  return max(length, len(tokens) + feature.add_eos)


def require_whole_targets(
    config: datasets.DatasetConfig, rows: Sequence[Row]) -> None:
  """Fails if every target loses its end token: no model can learn to end then.

  A few long texts are often cut on purpose.

  Args:
    config: gives the lengths.
    rows: of `first_rows`.

  Raises:
    DatasetError: naming the length that would do.
  """
  feature = datasets.get_mixture_or_task(config).output_features.get('targets')
  limit = (config.task_feature_lengths or {}).get('targets')
  found = _texts(rows, 'targets')
  if limit is None or not found or not feature.add_eos:
    return
  if all(len(tokens) > limit and tokens[-1] == feature.vocabulary.eos_id
         for tokens in found):
    longest = max(len(tokens) for tokens in found)
    raise datasets.DatasetError(
        f"TASK_FEATURE_LENGTHS['targets'] is {limit}, but all of the first "
        f'{len(found)} targets of {_name(config)!r} are longer (up to '
        f'{longest} tokens), so every one of them would lose its end token. '
        f'Set it to {longest} or more.')


def _texts(rows: Sequence[Row], name: str) -> list[np.ndarray]:
  """The tokens of a feature in every row that has some."""
  return [row[name] for row in rows if name in row and row[name].ndim == 1]


def _name(config: datasets.DatasetConfig) -> str:
  """The task's or mixture's name."""
  return datasets.get_mixture_or_task(config).name


def require_vocabulary_fits(
    config: datasets.DatasetConfig, infos: train_state_lib.ParameterInfos
) -> None:
  """Fails if a task has tokens that the model has no embedding for.

  Args:
    config: the task.
    infos: the model's parameters; their axis `vocab` is the table's length.

  Raises:
    DatasetError: naming the parameter and both sizes.
  """
  size = max(v.vocab_size for v in datasets.get_vocabulary(config))
  for path, info in infos.items():
    if 'vocab' not in info.axes:
      continue
    rows = info.shape[info.axes.index('vocab')]
    if rows < size:
      raise datasets.DatasetError(
          f'{_name(config)!r} has token ids up to {size - 1:,}, but {path} has '
          f'{rows:,} rows. Set vocab_size of the network (T5Config.vocab_size, '
          f'in prompt models NUM_EMBEDDINGS) to {size:,} or more, or use the '
          'task of this model family.')


def check(
    config: datasets.DatasetConfig,
    infos: train_state_lib.ParameterInfos,
    rows: Sequence[Row],
) -> list[str]:
  """All checks of a training task.

  Args:
    config: the training data.
    infos: the model's parameters.
    rows: of `first_rows`.

  Returns:
    Lines to show.

  Raises:
    DatasetError: if nothing could be learned from the data, or there is none.
  """
  require_vocabulary_fits(config, infos)
  if not rows:
    raise datasets.DatasetError(
        f'{_name(config)!r} has no example in the split {config.split!r}.')
  require_whole_targets(config, rows)
  return cut_features(config, rows)


def require_fitting_checkpoint(
    checkpoint: checkpoints.Checkpoint | None,
    restore: checkpoints.RestoreCheckpointConfig | None,
    infos: train_state_lib.ParameterInfos,
) -> None:
  """Fails if an initial checkpoint is of another size than the model.

  No array is read. Parameters that the assignment map speaks of are left to
  whoever restores them.

  Args:
    checkpoint: the checkpoint; None does nothing.
    restore: the rules.
    infos: the model's parameters.

  Raises:
    CheckpointError: naming both shapes and the model file that would fit.
  """
  if checkpoint is None or restore is None:
    return
  shapes = {name.removeprefix('target/'): array.shape for name, array
            in checkpoint.arrays.items()}
  ruled = [regex for regex, _ in restore.assignment_map or ()]
  for path, info in infos.items():
    if shapes.get(path, info.shape) == info.shape or any(
        re.fullmatch(regex, f'target/{path}') for regex in ruled):
      continue
    file = published_sizes.model_file(shapes)
    fix = (f'It has the size of {file}' if file else
           "Use the model file of the checkpoint's size")
    raise checkpoints.CheckpointError(
        f'{checkpoint.directory}: target/{path} has shape '
        f'{list(shapes[path])}, but the model has {list(info.shape)}. {fix}.')


def first_example(
    config: datasets.DatasetConfig, rows: Sequence[Row]) -> list[str]:
  """The first example as text and as token ids, a few lines."""
  if not rows:
    return [f'first example: {_name(config)} has none in {config.split!r}']
  features = datasets.get_mixture_or_task(config).output_features
  return [f'first example of {_name(config)}, split {config.split}:',
          *example(rows[0], features, config.task_feature_lengths)]


def example(
    row: Row, features: Mapping[str, Any], limits: Mapping[str, int] | None
) -> list[str]:
  """An example as a model sees it, two lines per feature.

  Args:
    row: its features, not cut.
    features: SeqIO features, for their vocabularies.
    limits: tokens per feature; None cuts nothing.

  Returns:
    Lines of text.
  """
  lines = []
  for name, feature in features.items():
    if name in row:
      lines += _feature(
          name, row[name], feature.vocabulary, (limits or {}).get(name))
  return lines


def _feature(
    name: str, tokens: np.ndarray, vocabulary: Any, limit: int | None
) -> list[str]:
  """One feature: its length, its text, its ids."""
  if tokens.ndim != 1 or tokens.dtype.kind not in 'iu':
    return [f'  {name}: {tokens.dtype}{list(tokens.shape)}']
  kept = tokens[:limit].tolist()
  length = f'{len(tokens)} tokens'
  if limit is not None:
    length += f' of {limit}' + (', cut' if len(tokens) > limit else '')
  shown = ' '.join(str(token) for token in kept[:SAMPLE])
  return [f'  {name}, {length}: {str(vocabulary.decode(kept))!r}',
          f'    ids {shown}' + (' ...' if len(kept) > SAMPLE else '')]
