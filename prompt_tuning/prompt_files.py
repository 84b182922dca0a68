"""A prompt `[P, H]` out of a file or folder of any format.

PROMPT_FILE                         holds
a folder with prompt.json           an artifact, see `prompt_artifacts`
a folder with adapter_config.json   a PEFT adapter, see `interop.peft`
another folder                      one of these, as numpy_checkpoints has
a file beside its `<file>.artifact` the same as the artifact, which is read
*.npz                               one array, or one of `NAMES`
*.safetensors                       one tensor, or one of `NAMES`
any other file                      an array, as numpy.save writes it
"""

from collections.abc import Callable, Mapping, Sequence
import logging
import os
import pathlib
from typing import Any

from etils import epath
from jaxtyping import Array, Float
import numpy as np
from prompt_tuning import npz_files
from prompt_tuning import numpy_files
from prompt_tuning import prompt_artifacts
from prompt_tuning.interop import peft
from t5x import safetensors_files

Prompt = Float[np.ndarray, 'P H']
Choose = Callable[[Sequence[str]], str]

# Of the arrays in a file of several, which one is the prompt.
NAMES = ('prompt', peft.TENSOR)
# Files that must not be read without what stands beside them.
_PARTS = ('prompt.safetensors', prompt_artifacts.RECORD, peft.TENSORS,
          peft.CONFIG)


class PromptFileError(numpy_files.NumpyFileError):
  """A file or folder that holds no prompt; the message says why."""


def read(path: str | pathlib.Path, name: str | None = None) -> Prompt:
  """Reads a prompt; nothing in the file is run.

  Args:
    path: see the module; only plain numpy and `.npz` files may be remote.
    name: of the array, in a file of several; None takes one of `NAMES`.

  Returns:
    The prompt, in the dtype of the file.

  Raises:
    ValueError: if there is none, it is damaged, or it is no finite matrix of
      floating-point numbers.
  """
  place = located(path)
  prompt = _read(place, _chooser(place, name))
  if prompt.ndim != 2 or not prompt.size or not (
      prompt.dtype.kind == 'f' or prompt.dtype.name == 'bfloat16'):
    raise PromptFileError(
        f'{place} holds {prompt.dtype}{list(prompt.shape)}; expected a prompt '
        '[P, H] of floating-point numbers.')
  return prompt


def located(path: str | pathlib.Path) -> str:
  """What a path means: the folder of a part, the content of a plain folder.

  A file beside which its artifact lies, as a run leaves both, means the latter.

  Args:
    path: of any format.

  Returns:
    A file, the folder of an artifact, or the folder of an adapter.

  Raises:
    ValueError: if there is nothing, a plain folder holds several, or a file
      and the artifact beside it differ.
  """
  place = epath.Path(path)
  if place.name in _PARTS and _is_described(place.parent):
    return os.fspath(place.parent)
  if _is_described(place):
    return os.fspath(place)
  if not place.is_dir():
    return _with_artifact(os.fspath(place))
  found = sorted(os.fspath(p) for p in place.iterdir()
                 if p.name[:1] != '.')
  # An artifact and the numpy file beside it are the same prompt.
  twins = {p + prompt_artifacts.SUFFIX for p in found}
  found = [p for p in found if p not in twins]
  if len(found) != 1:
    raise PromptFileError(
        f'{os.fspath(place)} is a folder with {len(found)} prompts or other '
        f'files; expected one, a prompt artifact or a PEFT adapter. Name one '
        f'of {[os.path.basename(p) for p in found[:5]]}.')
  return _with_artifact(found[0])


def _with_artifact(file: str) -> str:
  """The artifact beside a file, if there is one; only a local one is seen.

  Raises:
    ValueError: if it is of other values, or damaged.
  """
  artifact = file + prompt_artifacts.SUFFIX
  if not os.path.lexists(artifact) or not os.path.isfile(file):
    return file
  told = prompt_artifacts.read(artifact).record.sha256
  if prompt_artifacts.sha256(_read(file, _chooser(file, None))) != told:
    raise PromptFileError(
        f'{file} has other values than {artifact} beside it, so one of them '
        'has been changed. Give the artifact if that is meant, or move the '
        'file away from it.')
  return artifact


def _is_described(place: epath.Path) -> bool:
  """Whether a folder is an artifact or an adapter."""
  return prompt_artifacts.is_artifact(place) or peft.is_adapter(place)


def _read(place: str, choose: Choose) -> np.ndarray:
  """The array, by what its place is."""
  if prompt_artifacts.is_artifact(place):
    return prompt_artifacts.read(place).prompt
  if peft.is_adapter(place):
    return peft.read(place).prompt
  if place.endswith('.npz'):
    return npz_files.read(place, choose)
  if place.endswith('.safetensors'):
    tensors: Mapping[str, safetensors_files.LazyArray] = (
        safetensors_files.read(place))
    return tensors[choose(list(tensors))].get()
  return numpy_files.read(place)


def _chooser(place: str, name: str | None) -> Choose:
  """Which of several arrays is the prompt."""
  def choose(names: Sequence[str]) -> str:
    wanted = [n for n in names if n in (NAMES if name is None else (name,))]
    if name is None and len(names) == 1:
      wanted = list(names)
    if len(wanted) != 1:
      raise PromptFileError(
          f'{place} holds {len(names)} arrays, {sorted(names)[:5]}; expected '
          f'{"one, " if name is None else ""}'
          f'{" or ".join(NAMES) if name is None else repr(name)}.')
    return wanted[0]

  return choose


def parent_of(path: str | pathlib.Path) -> prompt_artifacts.Parent:
  """What a prompt that begins as another one says of it.

  Args:
    path: PROMPT_FILE.

  Returns:
    Its absolute place and sum, and its task if it is an artifact.

  Raises:
    ValueError: see `read`.
  """
  place = located(path)
  if '://' not in place:  # A run may go on in another working directory.
    place = os.path.abspath(place)
  if prompt_artifacts.is_artifact(place):
    record = prompt_artifacts.read(place).record
    return prompt_artifacts.Parent(place, record.sha256, record.task)
  return prompt_artifacts.Parent(place, prompt_artifacts.sha256(read(path)))


def require_same_base(
    parameters: Mapping[str, Array],
    directory: str | None,
    *,
    path: str,
    vocabulary: Any = None,
    enforce: bool = True,
) -> None:
  """Fails if a prompt was trained on another model or vocabulary.

  What `prompts/from_file.gin` gives `RestoreCheckpointConfig.base_checks`. Only
  artifacts know what they were trained on; everything else passes.

  Args:
    parameters: the frozen model's, by path.
    directory: the checkpoint that they came from.
    path: PROMPT_FILE.
    vocabulary: SeqIO vocabulary of the inputs; None does not compare it.
    enforce: False warns instead.

  Raises:
    ValueError: naming both.
  """
  place = located(path)
  if not prompt_artifacts.is_artifact(place):
    return
  for difference in prompt_artifacts.differences(
      prompt_artifacts.read(place).record, parameters, directory, vocabulary):
    text = f'{place} was trained {difference}'
    if enforce:
      raise PromptFileError(
          f'{text}. Give what it was trained with, or another prompt; '
          '--gin.require_same_base.enforce=False uses it all the same.')
    logging.warning('%s. It is used all the same.', text)
