"""Reads zarr arrays, and believes no chunk that does not prove itself.

tensorstore reads a gzip chunk whose trailer is cut off, and with it the sum
over its content. Chunks that gzip compressed, which are all that T5X wrote in
its native layout, are therefore unpacked here: each must end where gzip ends,
have gzip's CRC-32 and length, and fill the declared chunk. Other compressors
are left to tensorstore, which finds a missing or cut chunk, but can only find a
flipped bit where the compressor keeps a sum.
"""

from collections.abc import Callable, Iterator, Sequence
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


def read_header(store: ts.KvStore, place: str) -> ZarrHeader:
  """Reads `.zarray`, the header of version 2 of the format.

  Args:
    store: where the array is.
    place: how errors name it.

  Returns:
    The header.

  Raises:
    CheckpointError: if it is missing, damaged or means an array that no JAX
      program writes.
  """
  with naming(f'{place}/.zarray'):
    blob = store.read('.zarray').result()
    if blob.state != 'value':
      raise CheckpointError(
          f'{place}/.zarray is missing, so {place} is no zarr array; copy the '
          'checkpoint again.')
    header = json.loads(bytes(blob.value))
    name, compressor = header['dtype'], header['compressor']
    found = ZarrHeader(
        shape=sizes(header['shape']), chunks=sizes(header['chunks'], 1),
        dtype=ts.dtype(plain_dtype(name)).numpy_dtype,
        separator=header.get('dimension_separator', '.'),
        compressor=None if compressor is None else compressor['id'])
    plain = (header['zarr_format'], header['order'], header['filters'])
    if plain != (2, 'C', None) or name.startswith('>') or any(
        chunk > max(size, 1)
        for size, chunk in zip(found.shape, found.chunks, strict=True)):
      raise ValueError('not written by T5X or Orbax')
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
    store: ts.KvStore, place: str, shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[Index], np.ndarray]:
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
  def opened() -> Callable[[Index], np.ndarray]:
    header = read_header(store, place)
    if (header.shape, header.dtype) != (shape, dtype):
      raise CheckpointError(
          f'{place} holds {header.dtype}{list(header.shape)}, but the '
          f'checkpoint declares {dtype}{list(shape)}; it is damaged.')
    _require_chunks(store, place, ('', header.separator), shape, header.chunks)
    if header.compressor == 'gzip':
      return functools.partial(_read_gzip, store, place, header)
    return functools.partial(_read, _opened(store, place, 'zarr'), place)

  def read(index: Index) -> np.ndarray:
    return opened()(index)

  return read


def lazy_zarr(name: str, store: ts.KvStore, place: str) -> LazyArray:
  """An array whose shape and dtype only its own header says.

  Args:
    name: of the array.
    store: where it is.
    place: how errors name that.

  Returns:
    The array, unread.
  """
  header = read_header(store, place)
  return LazyArray(
      name, header.shape, header.dtype,
      reader(store, place, header.shape, header.dtype))


def lazy_zarr3(name: str, store: ts.KvStore, place: str) -> LazyArray:
  """The same in version 3 of the format, which tensorstore reads."""
  kept = _opened(store, place, 'zarr3')
  _require_chunks(store, place, ('c', '/'), kept.shape, [
      size or 1 for size in kept.chunk_layout.write_chunk.shape or ()])
  return LazyArray(
      name, tuple(kept.shape), kept.dtype.numpy_dtype,
      functools.partial(_read, kept, place))


def _require_chunks(
    store: ts.KvStore, place: str, naming_of_chunks: tuple[str, str],
    shape: Sequence[int], chunks: Sequence[int],
) -> None:
  """Fails unless all chunks are there.

  T5X and Orbax write every chunk; a missing one is damage that tensorstore
  would read as zeros. Nothing is allocated for an array that lies about its
  size.
  """
  with naming(place):
    keys = {key.decode() for key in store.list().result()}
  prefix, separator = naming_of_chunks
  for number in itertools.product(*(
      range(-(-size // chunk))
      for size, chunk in zip(shape, chunks, strict=True))):
    key = _chunk_key(number, prefix, separator)
    if key not in keys:
      raise CheckpointError(
          f'{place}/{key} is missing, a chunk of the array; copy the '
          'checkpoint again.')


def _chunk_key(number: tuple[int, ...], prefix: str, separator: str) -> str:
  """The name of a chunk; that of an array without axes is 0, or the prefix."""
  parts = ([prefix] if prefix else []) + [str(i) for i in number]
  return separator.join(parts) or '0'


def _opened(store: ts.KvStore, place: str, driver: str) -> ts.TensorStore:
  """An array that tensorstore opens."""
  with naming(place):
    return ts.open({'driver': driver, 'kvstore': store.spec().to_json()},
                   open=True, read=True).result()


def _read(kept: ts.TensorStore, place: str, index: Index) -> np.ndarray:
  """A slice of it."""
  with naming(place):
    return np.asarray(kept[index].read().result())


def _read_gzip(
    store: ts.KvStore, place: str, header: ZarrHeader, index: Index
) -> np.ndarray:
  """A slice of an array whose chunks gzip compressed."""
  bounds = [axis.indices(size)[:2]
            for axis, size in zip(index, header.shape, strict=True)]
  out = np.empty([stop - start for start, stop in bounds], header.dtype)
  numbers = list(itertools.product(*(
      range(start // chunk, -(-stop // chunk)) if stop > start else ()
      for (start, stop), chunk in zip(bounds, header.chunks, strict=True))))

  def copy(number: tuple[int, ...]) -> None:
    chunk = _gzip_chunk(store, place, header, number)
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
    store: ts.KvStore, place: str, header: ZarrHeader, number: tuple[int, ...]
) -> np.ndarray:
  """One chunk, whole: the last of an axis is filled up."""
  key = _chunk_key(number, '', header.separator)
  with naming(f'{place}/{key}'):
    blob = store.read(key).result()
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
