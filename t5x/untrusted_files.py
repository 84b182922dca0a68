"""Small files and folders that come from outside, read without trust.

A name cannot lead out of its folder, a pipe or a device is not opened, JSON is
what RFC 8259 calls interoperable (no key twice, no NaN), and a file is measured
before it is read.
"""

import json
import math
import os
import pathlib
from typing import Any

# A model's config and the index of its shards are far smaller.
LARGEST_JSON = 64 * 2**20


class UntrustedFileError(ValueError):
  """A file that is not used, named with the reason and the fix."""


def inside(folder: str | pathlib.Path, name: str) -> pathlib.Path:
  """A file of a folder.

  A symlink may point to another file of the folder. In a snapshot of
  huggingface_hub's cache, `models--<owner>--<name>/snapshots/<commit>`, it may
  also point to the blobs of the repository or of the cache, where that library
  keeps contents.

  Args:
    folder: a local folder.
    name: of a file right in it.

  Returns:
    Its path, which need not exist.

  Raises:
    UntrustedFileError: if the name or a symlink leads elsewhere.
  """
  folder = pathlib.Path(folder)
  if name in ('', '.', '..') or set(name) & set('/\\\0'):
    raise UntrustedFileError(
        f'{folder} names a file {name!r}; expected the name of a file in that '
        'folder, without a path. Get the folder again from its source.')
  path = folder / name
  found = path.resolve()
  if not any(found.is_relative_to(home) for home in _homes(folder.resolve())):
    raise UntrustedFileError(
        f'{path} is a symlink to {found}, outside of its folder; it is not '
        'followed. Put the file itself there.')
  return path


def _homes(folder: pathlib.Path) -> list[pathlib.Path]:
  """Where the files of a folder may really be."""
  repository = folder.parent.parent
  if folder.parent.name != 'snapshots' or not repository.name.startswith(
      'models--'):
    return [folder]
  return [folder, repository / 'blobs', repository.parent / 'blobs']


def require_regular(path: str | os.PathLike[str]) -> None:
  """Fails on what is there but is no file of bytes.

  Opening a pipe waits for a writer that may never come, and a device may never
  end. Folders and what is absent or remote are left to whoever opens
  them.

  Args:
    path: what is to be opened; a symlink is followed.

  Raises:
    UntrustedFileError: naming the path.
  """
  plain = os.path.isfile(path) or os.path.isdir(path)
  if os.path.exists(path) and not plain:
    raise UntrustedFileError(
        f'{os.fspath(path)} is a pipe or a device, not a regular file; it is '
        'not opened. Put the file itself there.')


def read_json(path: str | pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Args:
    path: a local file.

  Returns:
    The object.

  Raises:
    UntrustedFileError: if it is missing, no regular file, too large, or no such
      object.
  """
  path = pathlib.Path(path)
  require_regular(path)
  try:
    if (size := path.stat().st_size) > LARGEST_JSON:
      raise UntrustedFileError(
          f'{path} has {size:,} bytes; at most {LARGEST_JSON:,} of JSON are '
          'read.')
    content = path.read_bytes()
  except OSError as error:
    raise UntrustedFileError(
        f'{path} cannot be read ({error.strerror}).') from error
  return parse_json(content, str(path))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
  """An object of JSON text.

  Args:
    content: the text, in UTF-8.
    where: what it is, for errors.

  Returns:
    The object.

  Raises:
    UntrustedFileError: if it is something else, has a key twice or a number
      that JSON does not know.
  """
  try:
    found = json.loads(
        content.decode('utf-8'), object_pairs_hook=_unique,
        parse_constant=_refuse, parse_float=_finite)
  except (ValueError, RecursionError) as error:
    raise UntrustedFileError(
        f'{where} is no JSON that can be used: '
        f'{" ".join(str(error).split())[:200]}. Get it again from its source.'
    ) from error
  if not isinstance(found, dict):
    raise UntrustedFileError(
        f'{where} holds a JSON {type(found).__name__}; expected an object.')
  return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object whose keys are all different."""
  found: dict[str, Any] = {}
  for key, value in pairs:
    if key in found:
      raise ValueError(f'the key {key[:80]!r} stands there twice')
    found[key] = value
  return found


def _finite(number: str) -> float:
  """A number that is not too large for one."""
  if math.isinf(found := float(number)):
    raise ValueError(f'{number[:80]} is too large a number')
  return found


def _refuse(constant: str) -> None:
  """NaN and the infinities are no JSON."""
  raise ValueError(f'{constant} is no number of JSON')
