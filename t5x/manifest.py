"""A list of every file of a folder with its SHA-256, checked before reading.

Array stores restore flipped bytes and missing pieces without a word; a folder
that carries a manifest cannot.
"""

import hashlib
import json
from typing import Any

from etils import epath

NAME = 'manifest.json'
# A user's mark on a save that is to be kept; not content.
PINNED = 'PINNED'


class ManifestError(ValueError):
  """A folder that does not hold what its manifest says."""


def _digest(path: epath.Path) -> str:
  """SHA-256 of a file, read in pieces."""
  digest = hashlib.sha256()
  with path.open('rb') as file:
    while piece := file.read(1 << 20):
      digest.update(piece)
  return digest.hexdigest()


def _files(folder: epath.Path, prefix: str = '') -> dict[str, epath.Path]:
  """All files below a folder by relative name, manifest and pin aside."""
  found = {}
  for path in sorted(folder.iterdir()):
    name = f'{prefix}{path.name}'
    if path.is_dir():
      found.update(_files(path, f'{name}/'))
    elif name not in (NAME, PINNED):
      found[name] = path
  return found


def write(folder: epath.Path) -> None:
  """Lists what is in the folder now."""
  entries = {
      name: {'bytes': path.stat().length, 'sha256': _digest(path)}
      for name, path in _files(folder).items()
  }
  (folder / NAME).write_text(_text(entries))


def _text(entries: dict[str, Any]) -> str:
  """A manifest as text; there is one way to write it."""
  return json.dumps(entries, indent=1, sort_keys=True)


def verify(folder: epath.Path) -> None:
  """Reads every file of the folder and compares it with the manifest.

  Raises:
    ManifestError: naming the file that is missing, extra or changed.
  """
  try:
    text = (folder / NAME).read_text()
    listed = json.loads(text)
    expected = {name: (entry['bytes'], entry['sha256'])
                for name, entry in listed.items()}
    if text != _text(listed):
      raise ValueError('not as it was written')
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise ManifestError(
        f'{folder / NAME} is missing or damaged ({type(error).__name__}), so '
        'the folder cannot be checked; use another copy or an earlier step.'
    ) from error
  files = _files(folder)
  for what, names in (('missing', expected.keys() - files.keys()),
                      ('not in the manifest', files.keys() - expected.keys())):
    if names:
      raise ManifestError(
          f'{folder / min(names)} is {what}; the folder is damaged. Use '
          'another copy or an earlier step.')
  for name, path in files.items():
    if (path.stat().length, _digest(path)) != expected[name]:
      raise ManifestError(
          f'{path} was changed after it was written (its SHA-256 differs from '
          'the manifest). Use another copy or an earlier step.')
