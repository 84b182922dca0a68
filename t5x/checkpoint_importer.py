"""Reads T5X's native checkpoint layout: msgpack and tensorstore zarr.

    checkpoint_<step>/checkpoint           msgpack: names, small arrays
    checkpoint_<step>/target.<name>/       zarr: one directory per large array

Files are read through tensorstore's key-value stores, so a local path and
`gs://bucket/path` are the same thing. The content is untrusted: nothing is
unpickled or evaluated, names cannot leave the directory, and an array is only
allocated once its declared shape is the expected one.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import math
import posixpath
import struct
from typing import Any

from flax import serialization
import jax
import msgpack
import numpy as np
import tensorstore as ts

# The layout's own versions; before 2 names differ, 2 stored bfloat16 as uint16.
_READABLE_VERSIONS = (3,)


class CheckpointError(ValueError):
  """A checkpoint that cannot be used, named with the file and the fix."""


@dataclasses.dataclass(frozen=True)
class LazyArray:
  """An array of a checkpoint that is read when asked for.

  Attributes:
    name: its name in the checkpoint, `target/...`.
    shape: declared shape.
    dtype: declared dtype.
    read_slice: reads a part, given one slice per axis.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  read_slice: Callable[[tuple[slice, ...]], np.ndarray]

  @property
  def nbytes(self) -> int:
    """Bytes that `get` allocates."""
    return math.prod(self.shape) * self.dtype.itemsize

  def get(self) -> np.ndarray:
    """The whole array."""
    return self.read_slice((slice(None),) * len(self.shape))

  def put(self, sharding: jax.sharding.Sharding, dtype: Any) -> jax.Array:
    """The array on devices; every process reads only what it holds."""
    return jax.make_array_from_callback(
        self.shape, sharding,
        lambda index: np.asarray(self.read_slice(index or ())).astype(dtype))


def open_store(directory: str) -> ts.KvStore:
  """A key-value store over a local directory or a `gs://`, `s3://` address."""
  if '://' in directory:
    return ts.KvStore.open(directory.rstrip('/') + '/').result()
  path = posixpath.abspath(directory).rstrip('/') + '/'
  return ts.KvStore.open({'driver': 'file', 'path': path}).result()


def read_native(directory: str) -> dict[str, LazyArray]:
  """Opens a checkpoint in T5X's native layout.

  Args:
    directory: `checkpoint_<step>`, local or remote.

  Returns:
    From flat name (`target/...`, `state/step`, `state/param_states/...`) to
    array. Entries that the checkpoint records as None are left out.

  Raises:
    CheckpointError: if it is not such a checkpoint, or a damaged one.
  """
  store = open_store(directory)
  blob = store.read('checkpoint').result()
  if blob.state != 'value':
    raise CheckpointError(
        f'{directory} has no file named checkpoint, so it is no checkpoint in '
        "T5X's native layout.")
  try:
    content = serialization.msgpack_restore(bytes(blob.value))
    version = content['version']
    tree = dict(content['optimizer'])
  except (ValueError, KeyError, TypeError, struct.error,
          msgpack.exceptions.UnpackException) as error:
    raise CheckpointError(
        f'{directory}/checkpoint is not a T5X checkpoint, or it is damaged '
        f'({type(error).__name__}: {error}); copy it again.') from error
  if version not in _READABLE_VERSIONS:
    raise CheckpointError(
        f'{directory}/checkpoint has version {version}; this reads version '
        f'{_READABLE_VERSIONS[0]} (June 2021 and later). Convert it with T5X.')
  return {
      name: _lazy(name, leaf, store, directory)
      for name, leaf in _leaves(tree) if leaf is not None
  }


def _leaves(tree: Mapping[str, Any], prefix: str = ''):
  """Flat names and leaves; a tensorstore spec is a leaf."""
  for key, value in tree.items():
    name = f'{prefix}{key}'
    if isinstance(value, Mapping) and 'driver' not in value:
      yield from _leaves(value, f'{name}/')
    else:
      yield name, value


def _lazy(
    name: str, leaf: Any, store: ts.KvStore, directory: str) -> LazyArray:
  """An array that stands in the msgpack file, or one kept beside it."""
  if isinstance(leaf, Mapping):
    return _lazy_zarr(name, leaf, store, directory)
  if not isinstance(leaf, np.ndarray | np.generic | int | float):
    raise CheckpointError(
        f'{directory}/checkpoint: {name} is a {type(leaf).__name__}; expected '
        'an array.')
  array = np.asarray(leaf)
  return LazyArray(name, array.shape, array.dtype, lambda index: array[index])


def _lazy_zarr(
    name: str, spec: Mapping[str, Any], store: ts.KvStore, directory: str
) -> LazyArray:
  """An array kept in a zarr directory of the checkpoint.

  The spec may name other stores (`gfile`, `gcs` with a dummy bucket) and keep
  its path and dtype in several places; only its path, shape and dtype are
  believed, and the path is taken as relative to the checkpoint.
  """
  metadata, kvstore = (
      entry if isinstance(entry, Mapping) else {}
      for entry in (spec.get('metadata'), spec.get('kvstore')))
  path = spec.get('path') or kvstore.get('path') or ''
  key = posixpath.normpath(str(path).rstrip('/'))
  if spec.get('driver') != 'zarr' or key.startswith(('/', '..')) or key == '.':
    raise CheckpointError(
        f'{directory}/checkpoint: {name} is kept in {path!r} by the driver '
        f'{spec.get("driver")!r}; expected a zarr directory inside the '
        'checkpoint.')
  try:
    shape = tuple(metadata.get('shape', ()))
    dtype = ts.dtype(_plain_dtype(spec.get('dtype') or metadata.get('dtype')))
  except (TypeError, ValueError) as error:
    raise CheckpointError(
        f'{directory}/checkpoint: {name} declares no usable shape and dtype '
        f'({error}); copy the checkpoint again.') from error
  reader = zarr_reader(store / f'{key}/', f'{directory}/{key}', shape, dtype)
  return LazyArray(name, shape, dtype.numpy_dtype, reader)


def zarr_reader(
    store: ts.KvStore, place: str, shape: tuple[int, ...], dtype: ts.dtype
) -> Callable[[tuple[slice, ...]], np.ndarray]:
  """A function that reads slices of a zarr array, opened when first needed.

  Args:
    store: where the array is.
    place: how errors name it.
    shape: the shape it must have.
    dtype: the dtype it must have.

  Returns:
    From one slice per axis to values; it raises CheckpointError.
  """

  @functools.cache
  def opened() -> ts.TensorStore:
    kept = _open_zarr(store, place)
    if (kept.shape, kept.dtype) != (shape, dtype):
      raise CheckpointError(
          f'{place} holds {kept.dtype.name}{list(kept.shape)}, but the '
          f'checkpoint declares {dtype.name}{list(shape)}; it is damaged.')
    return kept

  def read_slice(index: tuple[slice, ...]) -> np.ndarray:
    with _naming(place):
      return opened()[index].read().result()

  return read_slice


def _open_zarr(store: ts.KvStore, place: str) -> ts.TensorStore:
  """Opens a zarr array that has all of its chunks.

  Without a fill value every chunk is written; a missing one is damage that
  tensorstore would read as zeros.
  """
  with _naming(place):
    kept = ts.open({'driver': 'zarr', 'kvstore': store.spec().to_json()},
                   open=True, read=True).result()
    keys = {key.decode() for key in store.list().result()}
  grid = [-(-size // chunk) for size, chunk in zip(
      kept.shape, kept.chunk_layout.read_chunk_template.shape, strict=True)]
  chunks = len(keys - {'.zarray', '.zattrs'})
  if chunks != math.prod(grid):
    raise CheckpointError(
        f'{place} has {chunks} chunks instead of {math.prod(grid)}; copy the '
        'checkpoint again.')
  return kept


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
  """Turns tensorstore's errors into ones that name the place."""
  try:
    yield
  except CheckpointError:
    raise
  except ValueError as error:
    raise CheckpointError(
        f'{place} cannot be read ({error}); copy the checkpoint again.'
    ) from error


def _plain_dtype(name: str | None) -> str:
  """`<f4` and `float32` are the same dtype."""
  return np.dtype(name).name if name and name[0] in '<>|' else str(name)
