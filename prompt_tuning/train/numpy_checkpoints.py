"""Every save of a run also as plain numpy files, one per chosen parameter.

    numpy_checkpoints/checkpoint_<step>/encoder.prompt.prompt.prompt
    numpy_checkpoints/checkpoint_<step>/encoder.prompt.prompt.prompt.artifact/

They are what `prompts/from_file.gin` starts another task from, and are never
removed: a prompt of 100 x 768 numbers is 300 kB. A trained matrix in front of a
frozen model also becomes a prompt artifact, which says what it was trained on.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os
import re
import time
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
from prompt_tuning import numpy_files
from prompt_tuning import prompt_artifacts
from prompt_tuning import prompt_files
from t5x import best_saves
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
      self,
      directory: str,
      *,
      save_paths: Sequence[str],
      vocabulary: Any = None,
      parent: str | None = None,
      **options: Any,
  ):
    """Nothing is written yet.

    Args:
      directory: the run's folder.
      save_paths: regexes on parameter paths, without a leading `/`.
      vocabulary: SeqIO vocabulary of the inputs.
      parent: PROMPT_FILE, if the prompt begins as another one.
      **options: see the base class.

    Raises:
      ValueError: if the parent cannot be read.
    """
    super().__init__(directory, **options)
    self._save_paths = tuple(save_paths)
    self._known = prompt_artifacts.Record(
        shape=(), sha256='',
        tokenizer=(None if vocabulary is None
                   else prompt_artifacts.tokenizer_of(vocabulary)),
        parent=None if parent is None else prompt_files.parent_of(parent))
    self._base: prompt_artifacts.Base | None = None
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
    records = {}
    if state.frozen:
      known = self._known_of(state, record)
      records = {path: dataclasses.replace(known, parameter=path)
                 for path in state.trainable}
    self.save_numpy(
        state.trainable | state.frozen, int(state.step), records)
    super().save(state, record)

  def _known_of(
      self, state: train_state_lib.TrainState, record: checkpoints.RunRecord
  ) -> prompt_artifacts.Record:
    """What an artifact says of a step besides its values."""
    if self._base is None:  # The frozen part never changes.
      base = record.base
      self._base = prompt_artifacts.base_of(
          state.frozen, *((base.path, base.step) if base else ()))
    step, folder = int(state.step), epath.Path(self.directory)
    recipe = folder / 'config.gin'
    return dataclasses.replace(
        self._known, base=self._base, metrics=_figures(folder, step),
        task=record.task, seed=record.seed, first_step=record.first_step,
        step=step, batch_size=record.batch_size,
        recipe=_text(recipe) if recipe.exists() else None)

  def save_numpy(
      self,
      parameters: Mapping[str, Any],
      step: int,
      records: Mapping[str, prompt_artifacts.Record] | None = None,
  ) -> None:
    """Writes the chosen parameters of a step.

    Numpy files of an earlier attempt at the same step are kept under another
    name if they differ; if they do not, they and their artifacts are left.

    Args:
      parameters: all parameters by path.
      step: absolute step.
      records: by path, what an artifact says of a matrix; those without one
        become numpy files only.

    Raises:
      CheckpointError: if they cannot be written; what was there is untouched.
      ValueError: if a regex chooses nothing, or a value is not finite.
    """
    for regex in self._save_paths:
      optimizers.require_match(regex, parameters)
    chosen = {
        path: np.asarray(_whole(value), np.float32)
        for path, value in parameters.items()
        if match_any(self._save_paths)(path, value)
    }
    for path, value in chosen.items():
      numpy_files.require_finite(value, f'step {step}: {_file_name(path)}')
    if jax.process_index() != 0:
      return
    final = self._folder / f'checkpoint_{step}'
    temporary = self._folder / f'{final.name}.tmp-0'
    try:
      self._write(chosen, final, temporary, records or {})
    except BaseException as error:
      temporary.rmtree(missing_ok=True)
      if not isinstance(error, OSError):
        raise
      raise checkpoints.CheckpointError(
          f'{final} could not be written ({error}). Earlier saves are '
          'untouched; see that the disk has space and that the folder can be '
          'written to, and start again to continue.') from error

  def _write(
      self,
      values: Mapping[str, np.ndarray],
      final: epath.Path,
      temporary: epath.Path,
      records: Mapping[str, prompt_artifacts.Record],
  ) -> None:
    """Puts the files of a step in place, all or none."""
    temporary.rmtree(missing_ok=True)
    for path, value in values.items():
      file = os.fspath(temporary / _file_name(path))
      numpy_files.write(file, value)
      if path in records and value.ndim == 2:
        prompt_artifacts.write(
            file + prompt_artifacts.SUFFIX, value, dataclasses.replace(
                records[path], shape=value.shape,
                sha256=prompt_artifacts.sha256(value)))
    if final.exists() and _same_files(final, temporary):
      temporary.rmtree()
      return
    if final.exists():
      final.rename(self._folder / f'{final.name}.backup-{time.time_ns()}')
    temporary.rename(final)


def _file_name(path: str) -> str:
  """T5X's name of a parameter's file."""
  return path.replace('/', '.')


def _figures(folder: epath.Path, step: int) -> dict[str, float]:
  """What the evaluation of a step found, `<task>/<name>`."""
  found: dict[str, float] = {}
  for file in sorted(folder.glob('inference_eval/*-metrics.jsonl')):
    task = file.name.removesuffix('-metrics.jsonl')
    for row in best_saves.rows(file):
      if row.pop('step') == step:
        found |= {f'{task}/{name}': value for name, value in row.items()
                  if type(value) in (int, float) and math.isfinite(value)}
  return found


def _text(file: epath.Path) -> str:
  """What an artifact quotes of a file; no text is a reason not to save."""
  text = file.read_bytes().decode('utf-8', errors='replace')
  return text[:prompt_artifacts.LONGEST_RECIPE]


def _whole(value: Any) -> np.ndarray:
  """All of an array, wherever its parts are."""
  if isinstance(value, jax.Array) and not value.is_fully_replicated and (
      not value.is_fully_addressable):
    return multihost_utils.process_allgather(value, tiled=True)
  return jax.device_get(value)


def _same_files(first: epath.Path, second: epath.Path) -> bool:
  """Whether two folders hold the same numpy files.

  Artifacts hold the same values, and beside them what differs between attempts:
  the configuration and figures.
  """
  def content(folder: epath.Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes()
            for file in folder.iterdir() if not file.is_dir()}

  return content(first) == content(second)
