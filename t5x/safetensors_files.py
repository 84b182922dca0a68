"""Reads and writes safetensors: one file, or the shards of a model.

    8 bytes     length of the header
    header      JSON: name -> dtype, shape, data_offsets; `__metadata__`
    data        the tensors, without gaps

Reading is by the package `safetensors`, which knows bfloat16, maps the file and
copies only the part that is asked for. It holds a header to the size of the
file, offsets to each other and to shapes, but lets the last of two equal keys
win and takes keys that mean nothing, so headers are read here first. Writing is
ours: the package wants all tensors in memory at once, and writes the memory of
a transposed numpy array in the wrong order. Folders are local, as files are
mapped; a remote one is copied first.
"""

from collections.abc import Mapping
import json
import os
import pathlib
import struct
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
import safetensors
from t5x import lazy_arrays
from t5x import untrusted_files
from t5x import whole_writes

CheckpointError = lazy_arrays.CheckpointError
LazyArray = lazy_arrays.LazyArray
Arrays = Mapping[str, LazyArray | np.ndarray]

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'

_DTYPES = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16,
    'BF16': jnp.bfloat16, 'I64': np.int64, 'I32': np.int32,
    'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_METADATA = '__metadata__'
_FIELDS = {'dtype', 'shape', 'data_offsets'}
_LARGEST_HEADER = 100_000_000  # The package's own limit.
_LARGEST_RANK = 8


class _Tensors(Protocol):
  """An open file."""

  def get_slice(self, name: str) -> Any:
    """One of its tensors, unread."""


def read(path: str | pathlib.Path) -> dict[str, LazyArray]:
  """Opens a safetensors file.

  Args:
    path: a local file.

  Returns:
    From name to unread array. Reading a part that holds a NaN or an infinity
    raises a CheckpointError, as no parameter is one.

  Raises:
    CheckpointError: if the file is damaged or made to deceive.
  """
  path = pathlib.Path(path)
  header = _header(path)
  try:
    # Kept open by the arrays.
    tensors = safetensors.safe_open(path, framework='np')
  except (safetensors.SafetensorError, OSError) as error:
    raise _unusable(path, str(error)) from error
  return {name: _lazy(path, name, entry, tensors)
          for name, entry in header.items() if name != _METADATA}


def read_folder(folder: str | pathlib.Path) -> dict[str, LazyArray]:
  """Opens a model's folder: `model.safetensors`, or its index and shards.

  Args:
    folder: a local folder.

  Returns:
    See `read`.

  Raises:
    CheckpointError: if there is no such file, one of them is damaged, or index
      and shards do not agree.
  """
  folder = pathlib.Path(folder)
  try:
    single = untrusted_files.inside(folder, SINGLE)
    if single.is_file():
      return read(single)
    index = untrusted_files.inside(folder, INDEX)
    if not index.is_file():
      raise CheckpointError(
          f'{folder} has neither {SINGLE} nor {INDEX}.')
    return _sharded(folder, untrusted_files.read_json(index))
  except untrusted_files.UntrustedFileError as error:
    raise CheckpointError(str(error)) from error


def write(
    path: str | pathlib.Path,
    arrays: Arrays,
    metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes a safetensors file, one tensor in memory at a time.

  The file appears whole or not at all, and is opened once before it appears.

  Args:
    path: a local file that is not there yet.
    arrays: from name to array.
    metadata: texts; `{'format': 'pt'}` is what transformers expects.

  Raises:
    CheckpointError: if a dtype has no name in the format, or an array holds
      something else than it declares.
    whole_writes.ExistsError: if the file is there already.
  """
  path = pathlib.Path(path)
  lazy = {name: array if isinstance(array, LazyArray)
          else lazy_arrays.of_array(name, array)
          for name, array in arrays.items()}
  # Wide numbers first, so that every tensor stays aligned.
  names = sorted(lazy, key=lambda name: (-lazy[name].dtype.itemsize, name))
  header = _new_header(path, {name: lazy[name] for name in names}, metadata)
  with whole_writes.file(path) as file:
    file.write(struct.pack('<Q', len(header)) + header)
    for name in names:
      file.write(_bytes(path, name, lazy[name]))
    file.flush()
    read(file.name)


def _new_header(
    path: pathlib.Path,
    arrays: Mapping[str, LazyArray],
    metadata: Mapping[str, str] | None,
) -> bytes:
  """The header of a file, padded to eight bytes."""
  entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
  start = 0
  for name, array in arrays.items():
    if array.dtype not in _NAMES:
      raise CheckpointError(
          f'{path}: {name} is {array.dtype}, which safetensors cannot hold; '
          f'expected one of {sorted(map(str, _NAMES))}.')
    entries[name] = {
        'dtype': _NAMES[array.dtype], 'shape': list(array.shape),
        'data_offsets': [start, start + array.nbytes]}
    start += array.nbytes
  header = json.dumps(entries, separators=(',', ':')).encode()
  return header + b' ' * (-len(header) % 8)


def _bytes(path: pathlib.Path, name: str, array: LazyArray) -> memoryview:
  """The values of an array as bytes, in rows, least byte first."""
  value = array.get()
  if value.shape != array.shape or value.dtype != array.dtype:
    raise CheckpointError(
        f'{path}: {name} is {value.dtype}{list(value.shape)}, not '
        f'{array.dtype}{list(array.shape)} as declared.')
  little = value.astype(value.dtype.newbyteorder('<'), copy=False)
  return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def _header(path: pathlib.Path) -> dict[str, Any]:
  """The header of a file, once it is known to be plain."""
  try:
    untrusted_files.require_regular(path)
    with path.open('rb') as file:
      size = os.fstat(file.fileno()).st_size
      start = file.read(8)
      length = struct.unpack('<Q', start)[0] if len(start) == 8 else size
      if length > min(size - 8, _LARGEST_HEADER):
        raise _unusable(path, f'it has {size:,} bytes, and its header claims '
                        f'{length:,}')
      content = file.read(length)
    header = untrusted_files.parse_json(content, f'the header of {path}')
  except OSError as error:
    raise _unusable(path, str(error)) from error
  except untrusted_files.UntrustedFileError as error:
    raise CheckpointError(str(error)) from error
  for name, entry in header.items():
    if name != _METADATA:
      _require_plain(path, name, entry)
  return header


def _require_plain(path: pathlib.Path, name: str, entry: Any) -> None:
  """Fails if an entry says something else than dtype, shape and place."""
  if not isinstance(entry, dict) or set(entry) != _FIELDS:
    found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
    raise _unusable(path, f'{name!r} has {found}; expected {sorted(_FIELDS)}')
  dtype, shape = entry['dtype'], entry['shape']
  if not isinstance(dtype, str) or dtype not in _DTYPES:
    raise _unusable(
        path, f'{name!r} has dtype {str(dtype)[:40]!r}; expected one of '
        f'{sorted(_DTYPES)}')
  if (not isinstance(shape, list) or len(shape) > _LARGEST_RANK
      or not all(type(size) is int and size > 0 for size in shape)):
    raise _unusable(
        path, f'{name!r} has shape {str(shape)[:80]}; expected at most '
        f'{_LARGEST_RANK} positive whole numbers')


def _unusable(path: pathlib.Path, reason: str) -> CheckpointError:
  """The error about a file that is damaged or made to deceive."""
  return CheckpointError(
      f'{path} is no safetensors file that can be used: {reason}. Get it again '
      'from its source.')


def _lazy(
    path: pathlib.Path, name: str, entry: Mapping[str, Any], tensors: _Tensors
) -> LazyArray:
  """A tensor of an open file."""
  def read_slice(index: lazy_arrays.Index) -> np.ndarray:
    part = np.asarray(tensors.get_slice(name)[index])
    if part.dtype.kind not in 'iub' and not np.isfinite(part).all():
      raise CheckpointError(
          f'{path}: {name} holds a NaN or an infinity; the file is damaged, or '
          'the training that made it failed.')
    return part

  return LazyArray(name, tuple(entry['shape']),
                   np.dtype(_DTYPES[entry['dtype']]), read_slice)


def _sharded(
    folder: pathlib.Path, index: Mapping[str, Any]) -> dict[str, LazyArray]:
  """The tensors of all shards; index and shards must say the same."""
  where = folder / INDEX
  places = index.get('weight_map')
  if (not isinstance(places, dict) or not places
      or not all(isinstance(shard, str) for shard in places.values())):
    raise CheckpointError(
        f'{where} has no weight_map from names of tensors to files.')
  paths = {shard: untrusted_files.inside(folder, shard)
           for shard in sorted(set(places.values()))}
  if other := [shard for shard in paths if not shard.endswith('.safetensors')]:
    raise CheckpointError(
        f'{where} names {other[0]}; only .safetensors files are read.')
  found = {}
  for shard, path in paths.items():
    arrays = read(path)
    listed = {name for name, place in places.items() if place == shard}
    if differing := sorted(listed ^ arrays.keys()):
      has = 'lacks' if differing[0] in listed else 'holds'
      said = places.get(differing[0], 'nowhere')
      raise CheckpointError(
          f'{path} {has} {differing[0]}, which {where} places in {said}; they '
          'are not of one model. Get the folder again from its source.')
    found.update(arrays)
  return found
