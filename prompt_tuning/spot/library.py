"""A folder of prompt artifacts, which are found by name.

    library/mnli-seed0-step10000/    prompt.safetensors  prompt.json  README.md

There is no index beside the folder itself, and an artifact appears whole or not
at all, so that any number of writers lose nothing: of two that add the same
name one is refused. All prompts of a library are of one frozen model; the first
one decides which.
"""

from collections.abc import Mapping, Sequence
import os
import pathlib
import re
import shutil
import tempfile

from jaxtyping import Float
import numpy as np
from prompt_tuning import prompt_artifacts
from prompt_tuning import prompt_files
from prompt_tuning.spot import retrieval
from prompt_tuning.spot import similarity

Record = prompt_artifacts.Record

_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._:+-]{0,199}')


class PromptLibraryError(ValueError):
  """A prompt that a library does not have or cannot take."""


class PromptLibrary:
  """The prompts in a folder."""

  def __init__(self, folder: str | pathlib.Path):
    """Nothing is read or made yet.

    Args:
      folder: a local folder; the first prompt that is added makes it.
    """
    self.folder = pathlib.Path(folder)

  def names(self) -> list[str]:
    """Names of the prompts, sorted; what is being written is not there yet."""
    if not self.folder.is_dir():
      return []
    return sorted(
        path.name for path in self.folder.iterdir()
        if _NAME.fullmatch(path.name) and prompt_artifacts.is_artifact(path))

  def read(self, name: str) -> prompt_artifacts.Artifact:
    """A prompt with its record, checked.

    Args:
      name: of the prompt.

    Returns:
      The artifact.

    Raises:
      PromptLibraryError: if there is none of that name.
      ArtifactError: if it is damaged.
    """
    return prompt_artifacts.read(self._existing(name))

  def add(self, path: str | pathlib.Path, name: str | None = None) -> str:
    """Copies an artifact into the library.

    Args:
      path: of an artifact, or what leads to one: see `prompt_files.located`.
      name: what it is called; None is `<task>-seed<seed>-step<step>`.

    Returns:
      The name.

    Raises:
      PromptLibraryError: if it is no artifact, has no task to be named by, or
        is of another model or width than the library.
      t5x.whole_writes.ExistsError: if there is one of that name.
    """
    place = prompt_files.located(path)
    if not prompt_artifacts.is_artifact(place):
      raise PromptLibraryError(
          f'{place} is no prompt artifact, so that nothing is known of it. '
          'Make one: python -m prompt_tuning.scripts.convert_prompt '
          '--format=artifact --base_checkpoint=...')
    artifact = prompt_artifacts.read(place)
    name = _default_name(artifact.record) if name is None else name
    _require_name(name)
    if others := self.names():
      _require_same_base(artifact.record, self.read(others[0]), place)
    prompt_artifacts.write(
        self.folder / name, artifact.prompt, artifact.record)
    return name

  def remove(self, name: str) -> None:
    """Removes a prompt.

    Args:
      name: of the prompt.

    Raises:
      PromptLibraryError: if there is none of that name.
    """
    doomed = pathlib.Path(tempfile.mkdtemp(
        dir=self._existing(name).parent, prefix=f'.{name}.'))
    try:
      # Nobody reads half of what is being removed.
      os.rename(self.folder / name, doomed / name)
    except FileNotFoundError as error:
      raise PromptLibraryError(
          f'{self.folder}: {name!r} was removed meanwhile.') from error
    finally:
      shutil.rmtree(doomed)

  def verify(self) -> dict[str, str]:
    """Reads everything.

    Returns:
      By name, what is wrong with the prompts that cannot be used: damage, or
      another model than that of the first.
    """
    problems: dict[str, str] = {}
    first = None
    for name in self.names():
      try:
        found = self.read(name)
        first = first or found
        _require_same_base(found.record, first, name)
      except (prompt_artifacts.ArtifactError, PromptLibraryError) as error:
        problems[name] = str(error)
    return problems

  def similar(
      self,
      prompt: Float[np.ndarray, 'P H'],
      measure: str = 'token_pairs',
      names: Sequence[str] | None = None,
  ) -> Mapping[str, float]:
    """How alike a prompt and those of the library are.

    Args:
      prompt: a target's, after few steps.
      measure: one of `similarity.MEASURES`.
      names: which prompts it is compared with; None is all.

    Returns:
      Similarities by name, the greatest first.

    Raises:
      PromptLibraryError: if there is no such measure, or nothing to compare
        with.
    """
    if measure not in similarity.MEASURES:
      raise PromptLibraryError(
          f'{measure!r} is no measure of similarity; expected one of '
          f'{", ".join(similarity.MEASURES)}.')
    names = self.names() if names is None else names
    if not names:
      raise PromptLibraryError(f'{self.folder} has no prompts to compare with.')
    (found,) = similarity.MEASURES[measure](
        [prompt], [self.read(name).prompt for name in names])
    by_name = dict(zip(names, found.tolist(), strict=True))
    return {name: by_name[name] for name in retrieval.rank(by_name)}

  def _existing(self, name: str) -> pathlib.Path:
    """The folder of a prompt."""
    names = self.names()
    if name not in names:
      raise PromptLibraryError(
          f'{self.folder} has no prompt {name!r}; it has {len(names)}: '
          f'{", ".join(names[:5])}{", ..." if len(names) > 5 else ""}.')
    return self.folder / name


def _default_name(record: Record) -> str:
  """What a prompt is called if nobody says."""
  if record.task is None:
    raise PromptLibraryError(
        'the prompt does not say which task it was trained on; give it a name.')
  parts = [re.sub(r'[^A-Za-z0-9._:+-]', '_', record.task)]
  parts += [f'{what}{value}' for what, value in (
      ('seed', record.seed), ('step', record.step)) if value is not None]
  return '-'.join(parts)


def _require_name(name: str) -> None:
  """Fails on what cannot be the name of a folder everywhere."""
  if not _NAME.fullmatch(name):
    raise PromptLibraryError(
        f'{name[:80]!r} cannot be the name of a prompt; expected at most 200 '
        'letters, digits, and . _ : + - after the first.')


def _require_same_base(
    record: Record, other: prompt_artifacts.Artifact, place: str) -> None:
  """Fails if two prompts are not of one model."""
  if record.shape[1] != other.record.shape[1]:
    raise PromptLibraryError(
        f'{place} has vectors of width {record.shape[1]}, the library of width '
        f'{other.record.shape[1]}; prompts of one model only can be compared.')
  ours, theirs = record.base, other.record.base
  if ours and theirs and ours.fingerprint != theirs.fingerprint:
    raise PromptLibraryError(
        f'{place} was trained on {ours}, the prompts of the library on '
        f'{theirs}; keep a library for each model.')
