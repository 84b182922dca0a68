"""Reading one array of a `.npz` file, without trusting the file.

It is a zip file of `.npy` files. `numpy.load` takes the last of several members
of a name, opens pickles when told to, and unpacks what it is given: a few
kilobytes may become gigabytes. Nothing is ever written, so that the path in a
member's name means nothing.
"""

from collections.abc import Callable, Sequence
import io
import zipfile

import numpy as np
from prompt_tuning import numpy_files

NumpyFileError = numpy_files.NumpyFileError

_MAX_MEMBERS = 10_000
# Trained numbers hardly shrink; constants do so by a thousand at most.
_MAX_RATIO = 100
_ALWAYS_FINE = 1 << 20  # Bytes that may come out of any compression.
_ENCRYPTED = 0x1


def read(path: str, choose: Callable[[Sequence[str]], str]) -> np.ndarray:
  """Reads one array; the others are not unpacked.

  Args:
    path: a `.npz` file; local or remote.
    choose: from the names of all arrays to the one that is wanted; raises
      `NumpyFileError` if it is not there.

  Returns:
    The array, in the dtype of the file.

  Raises:
    NumpyFileError: if the file is missing or damaged, or what it holds cannot
      be trusted.
  """
  packed = numpy_files.read_bytes(path)
  try:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
      members = _members(path, archive)
      name = choose(list(members))
      member = members[name]
      _require_plausible(path, member)
      content = archive.read(member)
  except NumpyFileError:
    raise
  except Exception as error:  # A damaged zip file can raise nearly anything.
    raise NumpyFileError(
        f'{path} is no .npz file, or damaged ({" ".join(str(error).split())}). '
        'Copy it again.') from error
  return numpy_files.parse(f'{path} ({name})', content)


def _members(
    path: str, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
  """The members by the names of their arrays."""
  infos = archive.infolist()
  if len(infos) > _MAX_MEMBERS:
    raise NumpyFileError(
        f'{path} has {len(infos):,} members; expected a file written by '
        'numpy.savez.')
  members: dict[str, zipfile.ZipInfo] = {}
  for info in infos:
    name = info.filename.removesuffix('.npy')
    if name == info.filename:
      raise NumpyFileError(
          f'{path} holds {info.filename!r}, which is no array; expected a file '
          'written by numpy.savez.')
    if name in members:
      raise NumpyFileError(
          f'{path} holds {name!r} twice, so that it is not known which is '
          'meant. Save it again with numpy.savez.')
    members[name] = info
  return members


def _require_plausible(path: str, info: zipfile.ZipInfo) -> None:
  """Fails on a member that is not to be unpacked."""
  if info.flag_bits & _ENCRYPTED or info.compress_type not in (
      zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise NumpyFileError(
        f'{path}: {info.filename!r} is encrypted or packed in an unknown way; '
        'expected a file written by numpy.savez.')
  most = max(_ALWAYS_FINE, _MAX_RATIO * info.compress_size)
  if info.file_size > most:
    raise NumpyFileError(
        f'{path}: {info.filename!r} would become {info.file_size:,} bytes out '
        f'of {info.compress_size:,}, which no trained prompt does. Save it '
        'with numpy.savez, uncompressed.')
