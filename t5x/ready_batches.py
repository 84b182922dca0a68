"""Batches that were prepared once, read without TensorFlow.

    <folder>/<feature>.npy    all batches of a feature, [batches, B, ...]
    <folder>/manifest.json    SHA-256 of every file, checked when it is opened

Files are mapped into memory, so that a folder may be larger than that.
"""

from collections.abc import Iterable, Iterator, Mapping
import itertools
import os
import re
from typing import Any, Self

from etils import epath
import numpy as np
from t5x import manifest

NumpyBatch = dict[str, np.ndarray]


class ReadyBatchesError(ValueError):
  """A folder that cannot be written, or does not hold batches."""


class ReadyBatches:
  """The batches of a folder, over and over.

  It has what the training loop asks of a dataset: `skip` and
  `as_numpy_iterator`.

  Attributes:
    num_batches: batches in the folder.
  """

  def __init__(
      self,
      features: Mapping[str, np.ndarray],
      first: int = 0,
      num_epochs: int | None = None,
  ):
    """Begins at a batch.

    Args:
      features: all batches by feature.
      first: the batch to begin with; beyond the last it is counted on from the
        first again.
      num_epochs: how often all batches come; None never ends.
    """
    self.num_batches = len(next(iter(features.values())))
    self._features = features
    self._first = first
    self._num_epochs = num_epochs

  def skip(self, count: int) -> Self:
    """The same without the next batches."""
    return type(self)(self._features, self._first + count, self._num_epochs)

  def as_numpy_iterator(self) -> Iterator[NumpyBatch]:
    """The batches, by feature."""
    end = (itertools.count(self._first) if self._num_epochs is None
           else range(self._first, self.num_batches * self._num_epochs))
    for number in end:
      yield {name: np.asarray(batches[number % self.num_batches])
             for name, batches in self._features.items()}


def write(folder: str, batches: Iterable[NumpyBatch], num_batches: int) -> None:
  """Writes batches of the same shapes.

  Args:
    folder: where to; must not exist.
    batches: at least as many as are wanted.
    num_batches: how many are written.

  Raises:
    ReadyBatchesError: if the folder is there, or the batches are too few or
      differ in shape. Nothing is left then.
  """
  final = epath.Path(folder)
  if final.exists():
    raise ReadyBatchesError(f'{folder} is there already; give another name.')
  if num_batches < 1:
    raise ReadyBatchesError(
        f'num_batches is {num_batches}; expected at least 1.')
  temporary = final.parent / f'{final.name}.tmp'
  temporary.rmtree(missing_ok=True)
  try:
    temporary.mkdir(parents=True)
    _write(os.fspath(temporary), batches, num_batches)
    manifest.write(temporary)
    temporary.rename(final)
  except BaseException:
    temporary.rmtree(missing_ok=True)
    raise


def _write(
    folder: str, batches: Iterable[NumpyBatch], num_batches: int) -> None:
  """Writes one array per feature."""
  arrays: dict[str, np.memmap] = {}
  count = 0
  for batch in itertools.islice(batches, num_batches):
    for name, rows in batch.items():
      if not count:
        arrays[name] = np.lib.format.open_memmap(
            f'{folder}/{_plain(name)}.npy', mode='w+', dtype=rows.dtype,
            shape=(num_batches, *rows.shape))
      elif name not in arrays or rows.shape != arrays[name].shape[1:]:
        raise ReadyBatchesError(
            f'Batch {count} has {name} {list(rows.shape)}, which the first has '
            'not; batches must have the same shapes.')
      arrays[name][count] = rows
    count += 1
  if count < num_batches:
    raise ReadyBatchesError(
        f'num_batches is {num_batches}, but there are only {count} batches.')
  for array in arrays.values():
    array.flush()


def _plain(name: str) -> str:
  """A feature's name, if it can be a file's."""
  if not re.fullmatch(r'\w+', name):
    raise ReadyBatchesError(f'The feature {name!r} cannot name a file.')
  return name


def read(folder: str, num_epochs: int | None = None) -> ReadyBatches:
  """Opens a folder.

  Args:
    folder: of `write`, local.
    num_epochs: how often all batches come; None never ends.

  Returns:
    The batches.

  Raises:
    ReadyBatchesError: if the folder is damaged or holds something else.
  """
  try:
    manifest.verify(epath.Path(folder))
    features = {
        path.name.removesuffix('.npy'): np.load(
            path, mmap_mode='r', allow_pickle=False)
        for path in epath.Path(folder).glob('*.npy')}
  except (OSError, ValueError) as error:
    raise ReadyBatchesError(
        f'{folder} holds no batches that can be read: {error}') from error
  counts = {name: array.shape[:2] for name, array in features.items()}
  if len(set(counts.values())) != 1 or 0 in next(iter(counts.values())):
    raise ReadyBatchesError(
        f'{folder} holds {counts or "no features"}; expected as many batches '
        'and rows of every feature.')
  return ReadyBatches(features, num_epochs=num_epochs)


def get_dataset(
    config: Any,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Any,
    *,
    directory: str,
    num_epochs: int | None = None,
) -> ReadyBatches:
  """In the place of `utils.get_dataset`: `train.get_dataset_fn` in gin.

  Args:
    config: what the batches were made of; gives their size.
    shard_id: must be 0, as every process reads all rows.
    num_shards: must be 1.
    feature_converter_cls: not needed any more.
    directory: of `write`.
    num_epochs: None repeats for ever.

  Returns:
    The batches.

  Raises:
    ReadyBatchesError: if they are of another size, or cannot be read.
  """
  del feature_converter_cls
  found = read(directory, num_epochs)
  rows = {len(x) for x in next(found.as_numpy_iterator()).values()}
  if (shard_id, num_shards) != (0, 1) or rows != {config.batch_size}:
    raise ReadyBatchesError(
        f'{directory} has batches of {max(rows)} rows, but BATCH_SIZE is '
        f'{config.batch_size} in {num_shards} parts. Export them again, or set '
        f'BATCH_SIZE to {max(rows)}.')
  return found
