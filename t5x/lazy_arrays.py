"""Arrays of a checkpoint that are read when they are needed."""

from collections.abc import Callable, Iterable
import dataclasses
import math
import os
from typing import Any

import jax
import numpy as np
import tensorstore as ts

Index = tuple[slice, ...]


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
  read_slice: Callable[[Index], np.ndarray]

  @property
  def nbytes(self) -> int:
    """Bytes that `get` allocates."""
    return math.prod(self.shape) * self.dtype.itemsize

  def get(self) -> np.ndarray:
    """The whole array."""
    return self.read_slice((slice(None),) * len(self.shape))

  def astype(self, dtype: Any) -> 'LazyArray':
    """The same array, converted when it is read."""
    wanted = np.dtype(dtype)
    return dataclasses.replace(
        self, dtype=wanted,
        read_slice=lambda index: np.asarray(
            self.read_slice(index)).astype(wanted, copy=False))

  def put(self, sharding: jax.sharding.Sharding, dtype: Any) -> jax.Array:
    """The array on devices.

    Every process reads, once, the part that encloses what its devices hold.
    """
    box = enclosing(sharding.addressable_devices_indices_map(
        self.shape).values(), self.shape)
    part = np.asarray(self.read_slice(box)).astype(dtype, copy=False)

    def piece(index: Index | None) -> np.ndarray:
      return part[tuple(
          slice(*(at - whole.start for at in axis.indices(size)[:2]))
          for axis, size, whole in zip(
              index or (), self.shape, box, strict=True))]

    return jax.make_array_from_callback(self.shape, sharding, piece)


def enclosing(
    indices: Iterable[Index | None], shape: tuple[int, ...]) -> Index:
  """The smallest part of an array that holds several parts of it.

  Args:
    indices: one slice per axis for each part; what the devices of a process
      hold.
    shape: of the array.

  Returns:
    One slice per axis.
  """
  bounds = [[axis.indices(size)[:2]
             for axis, size in zip(index or (), shape, strict=True)]
            for index in indices]
  return tuple(
      slice(min(start for start, _ in axis), max(stop for _, stop in axis))
      for axis in zip(*bounds, strict=True))


def of_array(name: str, array: Any) -> LazyArray:
  """An array that is there already, on the host or on devices."""
  return LazyArray(
      name, tuple(array.shape), np.dtype(array.dtype),
      lambda index: np.asarray(array[index]))


def open_store(directory: str) -> ts.KvStore:
  """A key-value store over a local directory or a `gs://`, `s3://` address."""
  if '://' in directory:
    return ts.KvStore.open(directory.rstrip('/') + '/').result()
  path = os.path.abspath(directory).rstrip('/') + '/'
  return ts.KvStore.open({'driver': 'file', 'path': path}).result()
