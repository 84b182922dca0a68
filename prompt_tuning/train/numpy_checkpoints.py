"""Every save of a run also as plain numpy files, one per chosen parameter.

    numpy_checkpoints/checkpoint_<step>/encoder.prompt.prompt.prompt

They are what `prompts/from_file.gin` starts another task from, and are never
removed: a prompt of 100 x 768 numbers is 300 kB.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
import time
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
from prompt_tuning import numpy_files
from t5x import checkpoints
from t5x import optimizers
from t5x import train_state as train_state_lib


@dataclasses.dataclass(frozen=True)
class _PathFilter:
  """Whether a path matches one of several regexes, as a whole."""

  regexes: tuple[str, ...]

  def __call__(self, path: str, value: Any) -> bool:
    """The form that `flax.traverse_util.ModelParamTraversal` calls."""
    del value
    return any(re.fullmatch(regex, path) for regex in self.regexes)


def match_any(regexes: Sequence[str]) -> _PathFilter:
  """A parameter filter: paths that fully match any of the regexes.

  Args:
    regexes: `PROMPT_REGEX`; a traversal shows it paths with a leading `/`.

  Returns:
    A function `(path, value) -> bool` that also knows its regexes.
  """
  return _PathFilter(tuple(regexes))


def np_save(path: str, arr: Any) -> None:
  """Writes an array as a numpy file, whole or not at all."""
  numpy_files.write(path, arr)


class Checkpointer(checkpoints.Checkpointer):
  """Saves the run and, before that, chosen parameters as numpy files."""

  def __init__(
      self, directory: str, *, save_paths: Sequence[str], **options: Any):
    """Nothing is written yet.

    Args:
      directory: the run's folder.
      save_paths: regexes on parameter paths, without a leading `/`.
      **options: see the base class.
    """
    super().__init__(directory, **options)
    self._save_paths = tuple(save_paths)
    self._folder = epath.Path(directory) / 'numpy_checkpoints'
    if jax.process_index() == 0 and self._folder.is_dir():
      for path in self._folder.glob('checkpoint_*.tmp-0'):
        path.rmtree()

  def save(
      self,
      state: train_state_lib.TrainState,
      record: checkpoints.RunRecord,
  ) -> None:
    """See base class."""
    self.save_numpy(state.trainable | state.frozen, int(state.step))
    super().save(state, record)

  def save_numpy(self, parameters: Mapping[str, Any], step: int) -> None:
    """Writes the chosen parameters of a step.

    Files of an earlier attempt at the same step are kept under another name
    if they differ.

    Args:
      parameters: all parameters by path.
      step: absolute step.

    Raises:
      CheckpointError: if they cannot be written; what was there is untouched.
      ValueError: if a regex chooses nothing, or a value is not finite.
    """
    for regex in self._save_paths:
      optimizers.require_match(regex, parameters)
    chosen = {
        path.replace('/', '.'): np.asarray(_whole(value), np.float32)
        for path, value in parameters.items()
        if match_any(self._save_paths)(path, value)
    }
    for name, value in chosen.items():
      numpy_files.require_finite(value, f'step {step}: {name}')
    if jax.process_index() != 0:
      return
    final = self._folder / f'checkpoint_{step}'
    temporary = self._folder / f'{final.name}.tmp-0'
    try:
      self._write(chosen, final, temporary)
    except OSError as error:
      temporary.rmtree(missing_ok=True)
      raise checkpoints.CheckpointError(
          f'{final} could not be written ({error}). Earlier saves are '
          'untouched; see that the disk has space and that the folder can be '
          'written to, and start again to continue.') from error

  def _write(
      self, files: Mapping[str, np.ndarray], final: epath.Path,
      temporary: epath.Path,
  ) -> None:
    """Puts the files of a step in place, all or none."""
    temporary.rmtree(missing_ok=True)
    for name, value in files.items():
      numpy_files.write(str(temporary / name), value)
    if final.exists() and _same_files(final, temporary):
      temporary.rmtree()
      return
    if final.exists():
      final.rename(self._folder / f'{final.name}.backup-{time.time_ns()}')
    temporary.rename(final)


def _whole(value: Any) -> np.ndarray:
  """All of an array, wherever its parts are."""
  if isinstance(value, jax.Array) and not value.is_fully_replicated and (
      not value.is_fully_addressable):
    return multihost_utils.process_allgather(value, tiled=True)
  return jax.device_get(value)


def _same_files(first: epath.Path, second: epath.Path) -> bool:
  """Whether two folders hold the same files."""
  def content(folder: epath.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}

  return content(first) == content(second)
