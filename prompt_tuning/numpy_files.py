"""Reading and writing single arrays as `.npy`, without trusting the file.

`numpy.load` allocates what the header claims, ignores trailing bytes and calls
a truncated file a pickle. Here the header and the size of the file must agree
before anything is allocated, and no value may be infinite or not a number.
"""

import io
import math
import os
from typing import Any

from etils import epath
import numpy as np
from t5x import untrusted_files

_MAX_HEADER_BYTES = 10_000
_MAX_AXES = 32


class NumpyFileError(ValueError):
  """A file that is no plain, finite array; the message says why."""


def read(path: str) -> np.ndarray:
  """Reads an array of numbers.

  Args:
    path: a `.npy` file, whatever its name; local or remote.

  Returns:
    The array, in the dtype of the file.

  Raises:
    NumpyFileError: if the file is missing, damaged, pickled, larger or smaller
      than its header says, or holds values that are not finite.
  """
  return parse(path, read_bytes(path))


def read_bytes(path: str) -> bytes:
  """All that a file holds.

  Args:
    path: local or remote.

  Returns:
    Its content.

  Raises:
    NumpyFileError: if the file is missing, or no regular file.
  """
  file = epath.Path(path)
  if file.is_dir() or not file.exists():
    raise NumpyFileError(f'{path} does not exist or is a folder; expected a '
                         'numpy file.')
  try:
    untrusted_files.require_regular(file)
  except untrusted_files.UntrustedFileError as error:
    raise NumpyFileError(str(error)) from error
  return file.read_bytes()


def parse(path: str, content: bytes) -> np.ndarray:
  """An array of numbers from what a file holds.

  Args:
    path: what errors call it.
    content: all of the file.

  Returns:
    The array, in the dtype of the file.

  Raises:
    NumpyFileError: see `read`.
  """
  shape, fortran_order, dtype, offset = _header(path, content)
  expected = math.prod(shape) * dtype.itemsize
  if expected != len(content) - offset:
    raise NumpyFileError(
        f'{path} declares {dtype.name}{list(shape)}, {expected:,} bytes, but '
        f'holds {len(content) - offset:,}; it is truncated or damaged. Copy it '
        'again.')
  array = np.frombuffer(content, dtype, offset=offset).reshape(
      shape, order='F' if fortran_order else 'C')
  require_finite(array, path)
  return array


def _header(
    path: str, content: bytes
) -> tuple[tuple[int, ...], bool, np.dtype, int]:
  """Shape, order, dtype and offset of the data."""
  stream = io.BytesIO(content[:_MAX_HEADER_BYTES])
  try:
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran_order, dtype = read_header(stream)
  except Exception as error:  # A damaged header can raise nearly anything.
    raise NumpyFileError(
        f'{path} is no numpy file ({" ".join(str(error).split())[:80]}). '
        'Expected a file written by numpy.save.') from error
  if len(shape) > _MAX_AXES or not all(
      type(size) is int and 0 <= size < 2**63 for size in shape):
    raise NumpyFileError(
        f'{path} declares the shape {str(shape)[:80]}; the file is damaged.')
  _require_numbers(dtype, path)
  return shape, fortran_order, dtype, stream.tell()


def _require_numbers(dtype: np.dtype, path: str) -> None:
  """Fails on anything but numbers in this machine's byte order."""
  if dtype.hasobject or dtype.kind not in 'fiu' or not dtype.isnative:
    raise NumpyFileError(
        f'{path} holds {dtype}, not plain numbers; pickled content is never '
        'loaded. Save the array as float32.')


def write(path: str, array: Any) -> None:
  """Writes an array so that a reader sees all of it or nothing.

  Args:
    path: the file; its folder is made if it is not there.
    array: numbers.

  Raises:
    NumpyFileError: if a value is not finite, or no plain number.
  """
  array = np.asarray(array)
  _require_numbers(array.dtype, path)
  require_finite(array, path)
  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=False)
  file = epath.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  temporary = file.parent / f'{file.name}.tmp-{os.getpid()}'
  try:
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(file)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise


def require_finite(array: np.ndarray, name: str) -> None:
  """Fails on infinite values and on values that are not numbers."""
  bad = array.size - int(np.isfinite(array).sum())
  if bad:
    raise NumpyFileError(
        f'{name}: {bad} of {array.size} values are infinite or not a number; '
        'use an earlier checkpoint of the run that made it.')
