"""What is asked of a checkpoint's folder without reading it: kind and pin."""

import enum

from etils import epath
from t5x import hugging_face
from t5x import hugging_face_config
from t5x import lazy_arrays
from t5x import manifest
from t5x import orbax_checkpoints

_TF_STATE = b'model_checkpoint_path'


class CheckpointTypes(enum.Enum):
  """The layouts that T5X knows, and Hugging Face's."""

  ORBAX = 'ORBAX'
  T5X = 'T5X'
  T5X_TF = 'T5X_TF'
  HUGGING_FACE = 'HUGGING_FACE'


def detect_checkpoint_type(
    checkpoint_path: epath.PathLike, expected: CheckpointTypes | None = None
) -> CheckpointTypes:
  """The layout of a checkpoint.

  Args:
    checkpoint_path: `checkpoint_<step>`, or a file in it.
    expected: what it should be; None for any.

  Returns:
    Its layout; what Orbax wrote in 2023, with a msgpack file, is ORBAX too.

  Raises:
    CheckpointError: if it is no checkpoint, or not the expected one.
  """
  folder = epath.Path(checkpoint_path)
  if folder.name == 'checkpoint' and not folder.is_dir():
    folder = folder.parent
  found = type_of(folder)
  if found is None:
    raise lazy_arrays.CheckpointError(
        f'{checkpoint_path} is no checkpoint: it holds neither state/'
        f'{orbax_checkpoints.METADATA} nor a file named checkpoint or '
        f'{hugging_face_config.NAME}.')
  if expected not in (None, found):
    raise lazy_arrays.CheckpointError(
        f'{checkpoint_path} is a checkpoint of the layout {found.value}; '
        f'expected {expected.value}.')
  return found


def type_of(folder: epath.Path) -> CheckpointTypes | None:
  """The layout of a folder; None if it is no checkpoint."""
  for place in (folder, folder / 'state'):
    if (place / orbax_checkpoints.METADATA).exists():
      return CheckpointTypes.ORBAX
  if (folder / 'state' / 'checkpoint').exists():
    return CheckpointTypes.ORBAX
  index = folder / 'checkpoint'
  if not index.exists():
    return (CheckpointTypes.HUGGING_FACE if hugging_face.is_folder(folder)
            else None)
  with index.open('rb') as file:
    is_tf = file.read(len(_TF_STATE)) == _TF_STATE
  return CheckpointTypes.T5X_TF if is_tf else CheckpointTypes.T5X


def pinned_checkpoint_filepath(ckpt_dir: epath.PathLike) -> str:
  """The file that pins a checkpoint."""
  return str(epath.Path(ckpt_dir) / manifest.PINNED)


def is_pinned_checkpoint(ckpt_dir: epath.PathLike) -> bool:
  """Whether a checkpoint stays, however many come after it."""
  return epath.Path(pinned_checkpoint_filepath(ckpt_dir)).exists()


def pin_checkpoint(ckpt_dir: epath.PathLike, txt: str = '1') -> None:
  """Keeps a checkpoint from being removed.

  Args:
    ckpt_dir: `checkpoint_<step>`.
    txt: written into the pin, for whoever wonders why.

  Raises:
    CheckpointError: if there is no such folder.
  """
  if not epath.Path(ckpt_dir).is_dir():
    raise lazy_arrays.CheckpointError(
        f'{ckpt_dir} cannot be pinned: there is no such folder.')
  epath.Path(pinned_checkpoint_filepath(ckpt_dir)).write_text(txt)


def unpin_checkpoint(ckpt_dir: epath.PathLike) -> None:
  """Takes the pin away, if there is one."""
  epath.Path(pinned_checkpoint_filepath(ckpt_dir)).unlink(missing_ok=True)


def remove_checkpoint_dir(ckpt_dir: epath.PathLike) -> None:
  """Removes a checkpoint unless it is pinned.

  It is renamed first, so that nobody takes what is left of it for a whole one
  if this is interrupted.
  """
  folder = epath.Path(ckpt_dir)
  if is_pinned_checkpoint(folder) or not folder.is_dir():
    return
  doomed = folder.parent / f'{folder.name}.tmp-removed'
  if doomed.exists():
    doomed.rmtree()
  folder.rename(doomed)
  doomed.rmtree()
