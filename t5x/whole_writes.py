"""Local files and folders that appear whole or not at all, and overwrite none.

What is written is checked under a temporary name beside the final one, and then
renamed. A writer that is killed leaves a hidden file or folder, `.<name>.*`.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import secrets
import shutil
from typing import IO


class ExistsError(ValueError):
  """Something is there already, and nothing is overwritten."""


@contextlib.contextmanager
def file(path: str | pathlib.Path) -> Iterator[IO[bytes]]:
  """A file that gets its name when the block ends without an error.

  Args:
    path: the file; its folder is there.

  Yields:
    The open file, under its temporary name.

  Raises:
    ExistsError: if there is something of that name.
  """
  final = _absent(path)
  name = _temporary(final)
  try:
    with open(name, 'xb') as opened:
      yield opened
      opened.flush()
      os.fsync(opened.fileno())
    _link(name, final)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(name)


def _temporary(final: pathlib.Path) -> pathlib.Path:
  """A new name beside another.

  Unlike those of `tempfile`, which only their owner may read, what is made
  under it has the permissions that the umask leaves.
  """
  return final.parent / f'.{final.name}.{secrets.token_hex(8)}'


def _link(name: pathlib.Path, final: pathlib.Path) -> None:
  """Gives a file its name; a rename would replace what came meanwhile."""
  try:
    os.link(name, final)
  except FileExistsError:
    _absent(final)
    raise
  except OSError:  # A file system without links.
    _absent(final)
    os.rename(name, final)


@contextlib.contextmanager
def folder(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder that gets its name when the block ends without an error.

  Args:
    path: the folder; the one above it is made if it is not there.

  Yields:
    The empty folder, under its temporary name.

  Raises:
    ExistsError: if there is something of that name.
  """
  final = _absent(path)
  final.parent.mkdir(parents=True, exist_ok=True)
  temporary = _temporary(final)
  temporary.mkdir()
  try:
    yield temporary
    # Onto an empty folder a rename would succeed.
    _absent(final)
    temporary.rename(final)
  except BaseException as error:
    shutil.rmtree(temporary, ignore_errors=True)
    if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
      _absent(final)  # Another writer was faster.
    raise


def _absent(path: str | pathlib.Path) -> pathlib.Path:
  """A path at which nothing is."""
  if os.path.lexists(path):
    raise ExistsError(f'{path} is there already; give another name.')
  return pathlib.Path(path)
