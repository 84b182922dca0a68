"""Arrays of a checkpoint that are read when they are needed."""

from collections.abc import Callable
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

    Every process reads only what its devices hold, and reads what several of
    them hold once.
    """
    parts: dict[Any, np.ndarray] = {}

    def part(index: Index | None) -> np.ndarray:
      index = index or ()
      key = tuple((axis.start, axis.stop) for axis in index)
      if key not in parts:
        parts[key] = np.asarray(self.read_slice(index)).astype(
            dtype, copy=False)
      return parts[key]

    return jax.make_array_from_callback(self.shape, sharding, part)


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
