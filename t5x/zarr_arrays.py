"""Reads zarr arrays, and believes no chunk that does not prove itself.

tensorstore reads a gzip chunk whose trailer is cut off, and with it the sum
over its content. Chunks that gzip compressed, which are all that T5X wrote in
its native layout, are therefore unpacked here: each must end where gzip ends,
have gzip's CRC-32 and length, and fill the declared chunk. Other compressors
are left to tensorstore, which finds a missing or cut chunk, but can only find a
flipped bit where the compressor keeps a sum.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import itertools
import json
import math
from typing import Any
import zlib

import numpy as np
from t5x import lazy_arrays
import tensorstore as ts

CheckpointError = lazy_arrays.CheckpointError
Index = lazy_arrays.Index
LazyArray = lazy_arrays.LazyArray

# Chunks of at most 64 MiB are unpacked at a time, in so many threads.
_THREADS = 4
# A chunk may be larger than its array, but not without limit.
_MOST_ELEMENTS = 2**24
_GZIP = 16 + zlib.MAX_WBITS


@dataclasses.dataclass(frozen=True)
class ZarrHeader:
  """What a zarr array says of itself.

  Attributes:
    shape: of the array.
    dtype: of its elements.
    chunks: shape of a chunk.
    separator: what stands between a chunk's indices in its name.
    compressor: name of the compressor; None without.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  chunks: tuple[int, ...]
  separator: str
  compressor: str | None


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an array is kept.

  Attributes:
    store: its files.
    name: how errors name it.
    keys: names of the files that are there.
  """

  store: ts.KvStore
  name: str
  keys: frozenset[str]


def places(
    store: ts.KvStore, directory: str, header: str = '.zarray'
) -> dict[str, Place]:
  """The arrays of a checkpoint, from one listing of it.

  Args:
    store: the checkpoint.
    directory: how errors name it.
    header: the file that makes a folder an array.

  Returns:
    From folder to place.
  """
  with naming(directory):
    names = [key.decode() for key in store.list().result()]
  files: dict[str, set[str]] = {}
  for name in names:
    folder, slash, file = name.partition('/')
    if slash:
      files.setdefault(folder, set()).add(file)
  return {
      folder: Place(store / f'{folder}/', f'{directory}/{folder}',
                    frozenset(keys))
      for folder, keys in files.items() if header in keys
  }


def require_same_arrays(
    directory: str, named: Iterable[str], kept: Iterable[str]) -> None:
  """Fails unless the arrays that are kept are those that are named.

  Args:
    directory: the checkpoint.
    named: the folders that its index names.
    kept: those that hold an array.

  Raises:
    CheckpointError: naming one that is only one of both.
  """
  for names, wrong in (
      (set(named) - set(kept), 'is named by the index of the checkpoint, but '
       'holds no header of an array'),
      (set(kept) - set(named), 'is not named by the index of the checkpoint')):
    if names:
      raise CheckpointError(
          f'{directory}/{min(names)} {wrong}; the checkpoint is damaged. Copy '
          'it again.')


def read_header(place: Place) -> ZarrHeader:
  """Reads `.zarray`, the header of version 2 of the format.

  Args:
    place: where the array is.

  Returns:
    The header.

  Raises:
    CheckpointError: if it is damaged or means an array that no JAX program
      writes.
  """
  with naming(f'{place.name}/.zarray'):
    header = json.loads(bytes(place.store.read('.zarray').result().value))
    name, compressor = header['dtype'], header['compressor']
    found = ZarrHeader(
        shape=sizes(header['shape']), chunks=sizes(header['chunks'], 1),
        dtype=ts.dtype(plain_dtype(name)).numpy_dtype,
        separator=header.get('dimension_separator', '.'),
        compressor=None if compressor is None else compressor['id'])
    plain = (header['zarr_format'], header['order'], header['filters'])
    if plain != (2, 'C', None) or name.startswith('>') or (
        len(found.shape) != len(found.chunks)):
      raise ValueError('not written by T5X or Orbax')
    if math.prod(found.chunks) > max(math.prod(found.shape), _MOST_ELEMENTS):
      raise ValueError(f'chunks of {list(found.chunks)}')
  return found


def sizes(entries: list[Any], least: int = 0) -> tuple[int, ...]:
  """A shape, if it is one.

  Args:
    entries: what was read.
    least: the smallest size that an axis may have.

  Returns:
    The entries, all of them whole numbers.

  Raises:
    ValueError: otherwise.
  """
  if not all(type(size) is int and least <= size < 2**63 for size in entries):
    raise ValueError(f'{str(entries)[:80]} is no shape')
  return tuple(entries)


def plain_dtype(name: str | None) -> str:
  """`<f4` and `float32` are the same dtype."""
  return np.dtype(name).name if name and name[0] in '<>|' else str(name)


def reader(
    place: Place, shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[Index], np.ndarray]:
  """A function that reads slices of a zarr array, opened when first needed.

  Args:
    place: where the array is.
    shape: the shape it must have.
    dtype: the dtype it must have.

  Returns:
    From one slice per axis to values; it raises CheckpointError.
  """

  @functools.cache
  def opened() -> Callable[[Index], np.ndarray]:
    header = read_header(place)
    if (header.shape, header.dtype) != (shape, dtype):
      raise CheckpointError(
          f'{place.name} holds {header.dtype}{list(header.shape)}, but the '
          f'checkpoint declares {dtype}{list(shape)}; it is damaged.')
    _require_chunks(place, ('', header.separator), shape, header.chunks)
    if header.compressor == 'gzip':
      return functools.partial(_read_gzip, place, header)
    return functools.partial(_read, _opened(place, 'zarr'), place)

  def read(index: Index) -> np.ndarray:
    return opened()(index)

  return read


def lazy_zarr(
    name: str, place: Place, write_shape: Sequence[int] | None
) -> LazyArray:
  """An array whose shape and dtype only its own header says.

  Args:
    name: of the array.
    place: where it is.
    write_shape: the shape of the parts that it was written in, if that is
      known; its own shape is a multiple of it.

  Returns:
    The array, unread.

  Raises:
    CheckpointError: if the header is damaged.
  """
  header = read_header(place)
  _require_multiple(place, header.shape, write_shape)
  return LazyArray(name, header.shape, header.dtype,
                   reader(place, header.shape, header.dtype))


def lazy_zarr3(
    name: str, place: Place, write_shape: Sequence[int] | None
) -> LazyArray:
  """The same in version 3 of the format, which tensorstore reads."""
  kept = _opened(place, 'zarr3')
  _require_multiple(place, kept.shape, write_shape)
  _require_chunks(place, ('c', '/'), kept.shape, [
      size or 1 for size in kept.chunk_layout.write_chunk.shape or ()])
  return LazyArray(
      name, tuple(kept.shape), kept.dtype.numpy_dtype,
      functools.partial(_read, kept, place))


def _require_multiple(
    place: Place, shape: Sequence[int], write_shape: Sequence[int] | None
) -> None:
  """Fails if an array is not made of the parts that it was written in."""
  if write_shape is not None and (
      len(shape) != len(write_shape) or any(
          size % max(part, 1)
          for size, part in zip(shape, write_shape, strict=True))):
    raise CheckpointError(
        f'{place.name} has shape {list(shape)} but was written in parts of '
        f'{list(write_shape)}; it is damaged. Copy the checkpoint again.')


def _require_chunks(
    place: Place, naming_of_chunks: tuple[str, str],
    shape: Sequence[int], chunks: Sequence[int],
) -> None:
  """Fails unless all chunks are there, and nothing else.

  T5X and Orbax write every chunk; a missing one is damage that tensorstore
  would read as zeros. Nothing is allocated for an array that lies about its
  size.
  """
  prefix, separator = naming_of_chunks
  left = {key for key in place.keys if not key.startswith(('.', 'zarr.json'))}
  for number in itertools.product(*(
      range(-(-size // chunk))
      for size, chunk in zip(shape, chunks, strict=True))):
    key = _chunk_key(number, prefix, separator)
    if key not in left:
      raise CheckpointError(
          f'{place.name}/{key} is missing, a chunk of the array; copy the '
          'checkpoint again.')
    left.remove(key)
  if left:
    raise CheckpointError(
        f'{place.name}/{min(left)} is no chunk of an array of {list(shape)}; '
        'its header is damaged. Copy the checkpoint again.')


def _chunk_key(number: tuple[int, ...], prefix: str, separator: str) -> str:
  """The name of a chunk; that of an array without axes is 0, or the prefix."""
  parts = ([prefix] if prefix else []) + [str(i) for i in number]
  return separator.join(parts) or '0'


def _opened(place: Place, driver: str) -> ts.TensorStore:
  """An array that tensorstore opens."""
  with naming(place.name):
    return ts.open({'driver': driver, 'kvstore': place.store.spec().to_json()},
                   open=True, read=True).result()


def _read(kept: ts.TensorStore, place: Place, index: Index) -> np.ndarray:
  """A slice of it."""
  with naming(place.name):
    return np.asarray(kept[index].read().result())


def _read_gzip(
    place: Place, header: ZarrHeader, index: Index) -> np.ndarray:
  """A slice of an array whose chunks gzip compressed."""
  bounds = [axis.indices(size)[:2]
            for axis, size in zip(index, header.shape, strict=True)]
  out = np.empty([stop - start for start, stop in bounds], header.dtype)
  numbers = list(itertools.product(*(
      range(start // chunk, -(-stop // chunk)) if stop > start else ()
      for (start, stop), chunk in zip(bounds, header.chunks, strict=True))))

  def copy(number: tuple[int, ...]) -> None:
    chunk = _gzip_chunk(place, header, number)
    inside, outside = [], []
    for i, size, (start, stop) in zip(
        number, header.chunks, bounds, strict=True):
      first, last = max(start, i * size), min(stop, (i + 1) * size)
      inside.append(slice(first - i * size, last - i * size))
      outside.append(slice(first - start, last - start))
    out[tuple(outside)] = chunk[tuple(inside)]

  if len(numbers) == 1:
    copy(numbers[0])
    return out
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    for done in [pool.submit(copy, number) for number in numbers]:
      done.result()
  return out


def _gzip_chunk(
    place: Place, header: ZarrHeader, number: tuple[int, ...]) -> np.ndarray:
  """One chunk, whole: the last of an axis is filled up."""
  key = _chunk_key(number, '', header.separator)
  with naming(f'{place.name}/{key}'):
    blob = place.store.read(key).result()
    size = math.prod(header.chunks) * header.dtype.itemsize
    inflate = zlib.decompressobj(_GZIP)
    # One byte more than expected shows what is too long; no more is unpacked.
    content = inflate.decompress(bytes(blob.value), size + 1)
    if not inflate.eof or inflate.unused_data or len(content) != size:
      raise ValueError(
          f'it does not unpack to {size:,} bytes with their gzip checksum')
  return np.frombuffer(content, header.dtype).reshape(header.chunks)


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
  """Turns errors of reading into ones that name the place."""
  try:
    yield
  except CheckpointError:
    raise
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError,
          zlib.error) as error:
    raise CheckpointError(
        f'{place} is missing or damaged ({type(error).__name__}: {error}); '
        'copy the checkpoint again.') from error
