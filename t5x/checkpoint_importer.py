"""Reads T5X's native checkpoint layout: msgpack and zarr.

    checkpoint_<step>/checkpoint           msgpack: names, small arrays
    checkpoint_<step>/target.<name>/       zarr: one directory per large array

and what Orbax wrote in 2023, which differs in how the msgpack file names the
zarr directories. Files are read through tensorstore's key-value stores, so a
local path and `gs://bucket/path` are the same thing. The content is untrusted:
nothing is unpickled or evaluated, names cannot leave the directory, and an
array is only allocated once its declared shape is the expected one.

What is detected: every damage to a gzip chunk, and every damage to the msgpack
file that changes a name, a shape or a dtype. What cannot be: a flipped bit in
the values of an array that stands in the msgpack file, which keeps no sum over
them; `t5x.manifest` closes that for checkpoints that carry one.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import posixpath
import struct
from typing import Any

from flax import serialization
import msgpack
import numpy as np
from t5x import lazy_arrays
from t5x import zarr_arrays
import tensorstore as ts

CheckpointError = lazy_arrays.CheckpointError
LazyArray = lazy_arrays.LazyArray

# Of the layout. 0 is a Flax state without a version; 2 keeps bfloat16 in zarr
# as uint16 of the same bits; 3 (June 2021) is what nearly all published ones
# have. What 1 was is not known.
_READABLE_VERSIONS = (0, 2, 3)
# How Orbax's msgpack file names a zarr directory.
_PLACEHOLDER = 'PLACEHOLDER://'
# The name that its state had before it was split into target and state.
_OLD_ROOT = '_optimizer/'


def read_native(directory: str) -> dict[str, LazyArray]:
  """Opens a checkpoint in T5X's native layout, or in Orbax's of 2023.

  Args:
    directory: the folder of the file `checkpoint`, local or remote.

  Returns:
    From flat name (`target/...`, `state/step`, `state/param_states/...`) to
    array. Entries that the checkpoint records as None are left out.

  Raises:
    CheckpointError: if it is not such a checkpoint, or a damaged one.
  """
  store = lazy_arrays.open_store(directory)
  content = _read_index(store, directory)
  version = content.get('version', 0)
  if version not in _READABLE_VERSIONS:
    raise CheckpointError(
        f'{directory}/checkpoint has version {version}; this reads versions '
        f'{_READABLE_VERSIONS}. Convert it with T5X.')
  tree = content['optimizer'] if 'version' in content else content
  leaves = {name.removeprefix(_OLD_ROOT): leaf for name, leaf in _leaves(tree)
            if leaf is not None}
  keys = {name: key for name, leaf in leaves.items()
          if (key := _key_of(name, leaf, directory)) is not None}
  places = zarr_arrays.places(store, directory)
  zarr_arrays.require_same_arrays(directory, keys.values(), places)
  return {
      name: _inline(name, leaf, directory) if name not in keys
      else _beside(name, leaf, places[keys[name]], directory, version)
      for name, leaf in leaves.items()}


def _read_index(store: ts.KvStore, directory: str) -> Mapping[str, Any]:
  """The msgpack file; it holds a state, with or without a version."""
  blob = store.read('checkpoint').result()
  if blob.state != 'value':
    raise CheckpointError(
        f'{directory} has no file named checkpoint, so it is no checkpoint in '
        "T5X's native layout.")
  try:
    content = serialization.msgpack_restore(bytes(blob.value))
    tree = content['optimizer'] if 'version' in content else content
    if not isinstance(tree.get('target', tree.get('_optimizer')), Mapping):
      raise ValueError('it has no parameters under target')
  except (ValueError, KeyError, TypeError, AttributeError, struct.error,
          msgpack.exceptions.UnpackException) as error:
    raise CheckpointError(
        f'{directory}/checkpoint is not a T5X checkpoint, or it is damaged '
        f'({type(error).__name__}: {error}); copy it again.') from error
  return content


def _leaves(
    tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Flat names and leaves; a tensorstore spec is a leaf."""
  for key, value in tree.items():
    name = f'{prefix}{key}'
    if isinstance(value, Mapping) and 'driver' not in value:
      yield from _leaves(value, f'{name}/')
    else:
      yield name, value


def _key_of(name: str, leaf: Any, directory: str) -> str | None:
  """The folder that an array is kept in; None if it stands in the file itself.

  A spec may name other stores (`gfile`, `gcs` with a dummy bucket) and keep its
  path in several places; only the path is believed. T5X and Orbax derive it
  from the name, so another one is damage: it would lead to another parameter of
  the same shape.
  """
  if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
    path = leaf.removeprefix(_PLACEHOLDER)
    own = path.removeprefix(_OLD_ROOT.replace('/', '.'))
  elif isinstance(leaf, Mapping):
    kvstore = leaf.get('kvstore')
    path = str(leaf.get('path') or (
        kvstore.get('path') if isinstance(kvstore, Mapping) else '') or '')
    path = own = posixpath.normpath(path.rstrip('/'))
  else:
    return None
  if own != name.replace('/', '.') or not own.strip('.') or (
      isinstance(leaf, Mapping) and leaf.get('driver') != 'zarr'):
    raise CheckpointError(
        f'{directory}/checkpoint: {name} is kept as {str(leaf)[:200]}; '
        f'expected zarr in {name.replace("/", ".")!r}. The file is damaged or '
        'not by T5X.')
  return path


def _inline(name: str, leaf: Any, directory: str) -> LazyArray:
  """An array that stands in the msgpack file."""
  number = type(leaf) is int and name == 'state/step'
  if not number and not isinstance(leaf, np.ndarray | np.generic):
    raise CheckpointError(
        f'{directory}/checkpoint: {name} is a {type(leaf).__name__}; expected '
        'an array.')
  return lazy_arrays.of_array(name, np.asarray(leaf))


def _beside(
    name: str, leaf: Any, place: zarr_arrays.Place, directory: str,
    version: int,
) -> LazyArray:
  """An array kept in a zarr folder of the checkpoint."""
  if isinstance(leaf, str):
    return zarr_arrays.lazy_zarr(name, place, None)
  try:
    metadata = leaf['metadata']
    shape = zarr_arrays.sizes(list(metadata['shape']))
    named = {zarr_arrays.plain_dtype(entry) for entry in (
        leaf.get('dtype'), metadata.get('dtype')) if entry is not None}
    (dtype,) = {ts.dtype(entry).numpy_dtype for entry in named}
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise CheckpointError(
        f'{directory}/checkpoint: {name} declares no usable shape and dtype '
        f'({error}); copy the checkpoint again.') from error
  array = LazyArray(
      name, shape, dtype, zarr_arrays.reader(place, shape, dtype))
  if dtype != np.uint16:
    return array
  if version != 2:
    raise CheckpointError(
        f'{directory}/checkpoint: {name} has dtype uint16, which version '
        f'{version} does not use; convert the checkpoint with T5X.')
  bfloat16 = ts.bfloat16.numpy_dtype
  return dataclasses.replace(
      array, dtype=bfloat16,
      read_slice=lambda index: array.read_slice(index).view(bfloat16))
