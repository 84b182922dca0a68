"""When a run is saved, and what it is restored from: the values gin binds."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from t5x import state_utils

StateDict = Mapping[str, Any]
# (state, parameter infos) -> the same two, changed; before a save.
SaveStateTransformationFn = Callable[
    [StateDict, StateDict], tuple[StateDict, StateDict]]
# (state, the model's state, *, is_resuming) -> state; before arrays are read.
RestoreStateTransformationFn = Callable[..., StateDict]
# (parameters that were restored and are not trained, where they came from);
# raises a ValueError to refuse them.
BaseCheckFn = Callable[[Mapping[str, Any], str | None], None]

_DTYPES = (None, 'float32', 'bfloat16', 'float16')


@dataclasses.dataclass(frozen=True)
class SaveCheckpointConfig:
  """When and how a run is saved.

  Attributes:
    dtype: dtype of the saved parameters. With anything but the parameters' own
      dtype a resumed run continues from rounded values.
    period: steps between saves, counted from the run's first step; None saves
      nothing.
    checkpoint_steps: absolute steps saved besides.
    keep: how many of the latest saves stay, at least one; None keeps all. A
      save in which a file PINNED is made stays too.
    save_dataset: accepted for T5X's gin files; the position in the data is
      always saved.
    checkpointer_cls: a `Checkpointer`, or what makes one.
    keep_dataset_checkpoints: accepted for T5X's gin files; the position in the
      data is a number in each save.
    state_transformation_fns: applied in order to what is saved.
  """

  dtype: str | None = 'float32'
  period: int | None = None
  checkpoint_steps: Sequence[int] | None = None
  keep: int | None = None
  save_dataset: bool = False
  checkpointer_cls: Any = None
  keep_dataset_checkpoints: int | None = None
  state_transformation_fns: Sequence[SaveStateTransformationFn] = ()

  def __post_init__(self):
    _require_dtype('SaveCheckpointConfig', self.dtype)
    if self.keep is not None and self.keep < 1:
      raise ValueError(
          f'SaveCheckpointConfig.keep is {self.keep}; expected at least 1, or '
          'None to keep all saves.')


@dataclasses.dataclass(frozen=True)
class RestoreCheckpointConfig:
  """Where a run's parameters come from when it has no save of its own.

  Attributes:
    path: `checkpoint_<step>`, or with mode 'latest' the folder above it.
    mode: 'specific', 'latest' or, for evaluation, 'all'.
    assignment_map: pairs of a regex on `target/<path>` and the checkpoint's
      name for it; None instead of a name leaves the parameter to its
      initialiser.
    strict: also restore Adafactor's state of what is trained, where the
      checkpoint has it; False begins with a fresh one. A parameter that is
      neither in the checkpoint nor named by the map is always an error.
    fallback_to_scratch: allow None in the map.
    dtype: dtype to restore to; None keeps the model's.
    restore_dataset: accepted for T5X's gin files; a run always goes on where
      its data was, and one that begins begins with its data.
    checkpointer_cls: accepted for T5X's gin files; every layout is recognised.
    state_transformation_fns: applied in order, after the map, to the tree of
      unread arrays.
    base_checks: not T5X's: called in order with the parameters that were
      restored, trained ones too, and with their checkpoint, before a run
      begins; they raise a ValueError to refuse them. What is resumed, or comes
      with the base that it records, has its own fingerprint instead.
  """

  path: str | Sequence[str] | None = None
  mode: str = 'latest'
  assignment_map: state_utils.AssignmentMap | None = None
  strict: bool = True
  fallback_to_scratch: bool = False
  dtype: str | None = None
  restore_dataset: bool = False
  checkpointer_cls: Any = None
  state_transformation_fns: Sequence[RestoreStateTransformationFn] = ()
  base_checks: Sequence[BaseCheckFn] = ()

  def __post_init__(self):
    _require_dtype('RestoreCheckpointConfig', self.dtype)
    if self.mode not in ('specific', 'latest', 'all'):
      raise ValueError(
          f'RestoreCheckpointConfig.mode is {self.mode!r}; expected '
          "'specific', 'latest' or 'all'.")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Both of them; None does not save or does not restore."""

  save: SaveCheckpointConfig | None = None
  restore: RestoreCheckpointConfig | None = None


def _require_dtype(owner: str, dtype: str | None) -> None:
  """Fails on a dtype that no checkpoint is written or read in."""
  if dtype not in _DTYPES:
    raise ValueError(
        f'{owner}.dtype is {dtype!r}; expected one of {_DTYPES}.')
