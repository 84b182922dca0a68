"""Tokenised examples of a task in SeqIO's offline cache, written without Beam.

    <output_cache_dir>/<task>/COMPLETED
                              info.<split>.json    types, for the reader
                              stats.<split>.json   examples and tokens
                              <split>.tfrecord-00000-of-00004 ...

SeqIO itself reads them, where a run has `--seqio_additional_cache_dirs=
<output_cache_dir>` and `USE_CACHED_TASKS=True`.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
import contextlib
import itertools
import json
import os
from typing import Any

from etils import epath
import numpy as np
import seqio
from t5x import datasets
import tensorflow as tf


def write(
    task: seqio.Task,
    output_cache_dir: str,
    *,
    splits: Sequence[str] | None = None,
    num_shards: int = 4,
    seed: int | None = 0,
) -> str:
  """Writes what comes before a task's `CacheDatasetPlaceholder`.

  Args:
    task: the task.
    output_cache_dir: where the cache's folder is made.
    splits: which; None takes all of the task.
    num_shards: files per split.
    seed: of preprocessors that draw.

  Returns:
    The folder. Nothing is left of one that could not be written whole.

  Raises:
    DatasetError: if the task cannot be cached, has no such split or example,
      or the folder is there.
  """
  if not task.supports_caching:
    raise datasets.DatasetError(
        f'The task {task.name!r} cannot be cached: it has no '
        'CacheDatasetPlaceholder, or its source forbids it.')
  if num_shards < 1:
    raise datasets.DatasetError(
        f'num_shards is {num_shards}; expected at least 1.')
  folder = epath.Path(output_cache_dir) / seqio.get_task_dir_from_name(
      task.name)
  if folder.exists():
    raise datasets.DatasetError(
        f'{folder} is there already; remove it to write it anew.')
  chosen = list(splits or task.splits)
  if unknown := sorted(set(chosen) - set(task.splits)):
    raise datasets.DatasetError(
        f'{task.name!r} has no split {unknown[0]!r}; it has '
        f'{sorted(task.splits)}.')
  temporary = folder.parent / f'{folder.name}.tmp'
  temporary.rmtree(missing_ok=True)
  try:
    temporary.mkdir(parents=True)
    for split in chosen:
      _write_split(task, os.fspath(temporary), split, num_shards, seed)
    (temporary / 'COMPLETED').touch()
    temporary.rename(folder)
  except BaseException:
    temporary.rmtree(missing_ok=True)
    raise
  return os.fspath(folder)


def _write_split(
    task: seqio.Task, folder: str, split: str, num_shards: int,
    seed: int | None,
) -> None:
  """Writes one split."""
  examples = task.preprocess_precache(
      task.source.get_dataset(split=split, shuffle=False, seed=seed), seed)
  prefix = seqio.utils.get_cached_tfrecord_prefix(folder, split)
  stats: dict[str, int] = collections.Counter()
  with contextlib.ExitStack() as stack:
    shards = [
        stack.enter_context(tf.io.TFRecordWriter(
            f'{prefix}-{shard:05}-of-{num_shards:05}'))
        for shard in range(num_shards)]
    for example, shard in zip(examples, itertools.cycle(shards)):
      shard.write(seqio.utils.dict_to_tfexample({
          name: _storable(value) for name, value in example.items()
      }).SerializeToString())
      _count(stats, example, task.output_features)
  if not stats['examples']:
    raise datasets.DatasetError(
        f'{task.name!r} has no example in the split {split!r}.')
  _write_json(seqio.utils.get_cached_info_path(folder, split), {
      'num_shards': num_shards, 'seqio_version': seqio.__version__,
      'features': _types(examples.element_spec)})
  _write_json(seqio.utils.get_cached_stats_path(folder, split), stats)


def _storable(value: Any) -> Any:
  """Truth values as numbers, which is how records hold them."""
  return tf.cast(value, tf.int64) if value.dtype == tf.bool else value


def _count(
    stats: dict[str, int], example: Mapping[str, Any], features: Iterable[str]
) -> None:
  """Adds an example to the figures of its split."""
  stats['examples'] += 1
  for name in features:
    if name in example and example[name].dtype.is_integer:
      tokens = int(np.size(example[name]))
      stats[f'{name}_tokens'] += tokens
      stats[f'{name}_max_tokens'] = max(stats[f'{name}_max_tokens'], tokens)


def _types(specs: Mapping[str, Any]) -> dict[str, Any]:
  """Shape and dtype of every field, as SeqIO's reader wants them."""
  types = {}
  for name, spec in specs.items():
    shape = spec.shape.as_list()
    types[name] = {'shape': [None, *shape[1:]] if shape else [],
                   'dtype': spec.dtype.name}
  return types


def _write_json(path: str, content: Mapping[str, Any]) -> None:
  """Writes a small file."""
  epath.Path(path).write_text(json.dumps(content, indent=2, sort_keys=True))
