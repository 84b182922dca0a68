"""Models by the names of the Hugging Face hub: `hf:owner/name[@revision]`.

Only configuration, safetensors and the SentencePiece file are downloaded, into
huggingface_hub's own cache; never pickles, never code. That package is imported
when such a name is met, and not before.
"""

import functools
import re

from t5x import lazy_arrays

CheckpointError = lazy_arrays.CheckpointError

PREFIX = 'hf:'
_NAME = re.compile(r'hf:([\w-][\w.-]*/[\w-][\w.-]*)(?:@(\w[\w./-]*))?')
SMALL = ('config.json', 'model.safetensors.index.json', 'spiece.model')
WEIGHTS = 'model*.safetensors'


def is_name(path: str) -> bool:
  """Whether a path is a name of the hub."""
  return str(path).startswith(PREFIX)


# Asked once, so that all of a run has the same revision.
@functools.cache
def download(name: str, weights: bool = True) -> str:
  """The local folder of a model, downloaded if it is not there yet.

  Args:
    name: `hf:owner/name`, or `hf:owner/name@revision` with a branch, a tag or
      a commit.
    weights: False downloads small files only; weights may follow.

  Returns:
    A snapshot in the cache, `models--<owner>--<name>/snapshots/<commit>`.

  Raises:
    CheckpointError: if it is no such name, the package is not installed, or the
      model cannot be had.
  """
  match = _NAME.fullmatch(name)
  if match is None or '..' in name:
    raise CheckpointError(
        f'{name!r} is no model of the hub; expected hf:owner/name or '
        'hf:owner/name@revision, for instance hf:google/flan-t5-base.')
  try:
    import huggingface_hub  # noqa: PLC0415  Needed for these names only.
  except ImportError as error:
    raise CheckpointError(
        f'{name} needs the package huggingface_hub: pip install '
        "'spot-prompt-tuning[hub]', or download the model and give its folder."
    ) from error
  wanted = [*SMALL, *([WEIGHTS] if weights else [])]
  try:
    folder = huggingface_hub.snapshot_download(
        match[1], revision=match[2], allow_patterns=wanted)
  except Exception as error:  # Its own, its HTTP client's, the system's.
    raise CheckpointError(
        f'{name} cannot be downloaded ({type(error).__name__}: '
        f'{" ".join(str(error).split())[:300]}). See that the name is right '
        'and the hub can be reached, or give the folder of a copy.') from error
  if weights and download(name, weights=False) != folder:
    raise CheckpointError(
        f'{name} was changed while it was downloaded; start again, or name a '
        'commit: hf:owner/name@commit.')
  return folder
