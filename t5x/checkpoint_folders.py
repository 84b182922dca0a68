"""Finds a checkpoint among folders, and opens whichever layout it has."""

import dataclasses
import functools
import os
import re

from etils import epath
from t5x import checkpoint_importer
from t5x import checkpoint_utils
from t5x import hugging_face
from t5x import lazy_arrays
from t5x import manifest
from t5x import orbax_checkpoints

CheckpointError = lazy_arrays.CheckpointError
LazyArray = lazy_arrays.LazyArray

# The file that only our own saves have.
RECORD = 'record.json'


def get_checkpoint_dir(directory: str, step: int) -> str:
  """Where the save of a step is."""
  return os.path.join(directory, f'checkpoint_{step}')


def all_steps(directory: str) -> list[int]:
  """Steps of the finished saves in a folder, ascending."""
  folder = epath.Path(directory)
  if not folder.is_dir():
    return []
  matches = (re.fullmatch(r'checkpoint_(\d+)', p.name)
             for p in folder.iterdir())
  return sorted(int(match[1]) for match in matches if match)


def latest_step(directory: str) -> int | None:
  """The last finished save; None if there is none."""
  return max(all_steps(directory), default=None)


def find_checkpoint(path: str, step: int | None = None) -> str:
  """The folder of one checkpoint.

  Args:
    path: that folder, its `checkpoint` file, or the folder above it; or a model
      of the Hugging Face hub, `hf:owner/name[@revision]`.
    step: which one, if `path` holds several; None takes the last.

  Returns:
    A folder.

  Raises:
    CheckpointError: if there is none.
  """
  path = hugging_face.local_folder(path)
  folder = epath.Path(path)
  if folder.name == 'checkpoint' and not folder.is_dir():
    folder = folder.parent
  found = checkpoint_utils.type_of(folder)
  steps = all_steps(path)
  # A folder of saves may hold any config.json besides.
  is_checkpoint = found is not None and not (
      steps and found == checkpoint_utils.CheckpointTypes.HUGGING_FACE)
  if step is None and is_checkpoint:
    return os.fspath(folder)
  wanted = max(steps, default=None) if step is None else step
  if wanted is None or wanted not in steps:
    raise CheckpointError(
        f'No checkpoint {"" if step is None else f"of step {step} "}at {path}. '
        'Expected a folder checkpoint_<step>, one that holds such folders, or '
        "one of Hugging Face's with a config.json"
        f'{f"; it holds steps {steps}" if steps else ""}.')
  return get_checkpoint_dir(os.fspath(folder), wanted)


def is_run_save(directory: str) -> bool:
  """Whether a checkpoint is one of our own runs' saves."""
  return (epath.Path(directory) / RECORD).exists()


def open_checkpoint(directory: str) -> dict[str, LazyArray]:
  """Opens one checkpoint of any layout.

  Args:
    directory: `checkpoint_<step>`, local or remote, of T5X's native layout,
      T5X's by Orbax, or our own; or a local folder of Hugging Face's.

  Returns:
    From flat name (`target/...`, `state/step`) to lazy array.

  Raises:
    CheckpointError: if it is damaged or no checkpoint.
  """
  folder = epath.Path(directory)
  if (folder / RECORD).exists() or (folder / manifest.NAME).exists():
    try:
      manifest.verify(folder)
    except manifest.ManifestError as error:
      raise CheckpointError(str(error)) from error
  arrays = _arrays(folder)
  _require_step(folder, arrays)
  return arrays


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """One checkpoint, opened when it is first asked for something, and once.

  Opening one that has sums reads all of it.

  Attributes:
    directory: `checkpoint_<step>`, local or remote.
  """

  directory: str

  @functools.cached_property
  def arrays(self) -> dict[str, LazyArray]:
    """See `open_checkpoint`."""
    return open_checkpoint(self.directory)

  @functools.cached_property
  def step(self) -> int:
    """The step that it is of; 0 if it does not say.

    Raises:
      CheckpointError: if it says something else than one integer.
    """
    step = self.arrays.get('state/step')
    if step is None:
      return 0
    if step.shape or step.dtype.kind not in 'iu':
      raise CheckpointError(
          f'{self.directory}: state/step is {step.dtype}{list(step.shape)}; '
          'expected one integer.')
    return int(step.get())


def _arrays(folder: epath.Path) -> dict[str, LazyArray]:
  """The arrays of a folder, by its layout."""
  found = checkpoint_utils.detect_checkpoint_type(folder)
  if found == checkpoint_utils.CheckpointTypes.T5X_TF:
    raise CheckpointError(
        f'{folder} is a TensorFlow checkpoint; convert it with T5X.')
  if found == checkpoint_utils.CheckpointTypes.HUGGING_FACE:
    return hugging_face.read(os.fspath(folder))
  place = folder / 'state' if (folder / 'state').exists() else folder
  if (place / orbax_checkpoints.METADATA).exists():
    return orbax_checkpoints.read_orbax(os.fspath(place))
  return checkpoint_importer.read_native(os.fspath(place))


def _require_step(
    folder: epath.Path, arrays: dict[str, LazyArray]) -> None:
  """Fails if a checkpoint is of another step than its folder's name says.

  T5X names the folder by the step, so a difference is damage to one number
  that no sum protects.
  """
  named = re.fullmatch(r'checkpoint_(\d+)', folder.name)
  if named is None:
    return
  step = arrays.get('state/step')
  if step is None or step.shape or step.dtype.kind not in 'iu':
    found = 'missing' if step is None else f'{step.dtype}{list(step.shape)}'
    raise CheckpointError(
        f'{folder}: state/step is {found}; expected one integer. The '
        'checkpoint is damaged.')
  if (value := int(step.get())) != int(named[1]):
    raise CheckpointError(
        f'{folder} is of step {value:,} by its content; it is damaged, or was '
        'renamed. Name it by its step.')
