"""What T5X's `checkpoints` offers, gathered from the modules that do it.

`checkpoint_configs` says when a run is saved and what it starts from,
`run_saves` and `best_saves` save it, `checkpoint_folders` finds and opens
checkpoints of every layout, `native_checkpoints` writes T5X's native one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from t5x import best_saves
from t5x import checkpoint_configs
from t5x import checkpoint_folders
from t5x import lazy_arrays
from t5x import native_checkpoints
from t5x import run_saves
from t5x import state_utils
from t5x import train_state as train_state_lib

CheckpointError = lazy_arrays.CheckpointError
LazyArray = lazy_arrays.LazyArray
TrainState = train_state_lib.TrainState

VERSION = native_checkpoints.VERSION
save_t5x_checkpoint = native_checkpoints.save_t5x_checkpoint

SaveCheckpointConfig = checkpoint_configs.SaveCheckpointConfig
RestoreCheckpointConfig = checkpoint_configs.RestoreCheckpointConfig
CheckpointConfig = checkpoint_configs.CheckpointConfig
SaveStateTransformationFn = checkpoint_configs.SaveStateTransformationFn
RestoreStateTransformationFn = checkpoint_configs.RestoreStateTransformationFn

get_checkpoint_dir = checkpoint_folders.get_checkpoint_dir
all_steps = checkpoint_folders.all_steps
latest_step = checkpoint_folders.latest_step
find_checkpoint = checkpoint_folders.find_checkpoint
open_checkpoint = checkpoint_folders.open_checkpoint
is_run_save = checkpoint_folders.is_run_save
Checkpoint = checkpoint_folders.Checkpoint

BaseRecord = run_saves.BaseRecord
RunRecord = run_saves.RunRecord
Checkpointer = run_saves.Checkpointer
SaveBestCheckpointer = best_saves.SaveBestCheckpointer
make_checkpointer = run_saves.make_checkpointer
Save = run_saves.Save
restore_run = run_saves.restore_run


def load_t5x_checkpoint(
    path: str,
    step: int | None = None,
    state_transformation_fns: Sequence[RestoreStateTransformationFn] = (),
    remap: bool = True,
    *,
    restore_dtype: Any = None,
    lazy_parameters: bool = False,
) -> dict[str, Any]:
  """All of a checkpoint as nested dictionaries `{'target', 'state'}`.

  Args:
    path: see `find_checkpoint`.
    step: see `find_checkpoint`.
    state_transformation_fns: applied in order to the tree of unread arrays.
    remap: False leaves names as the checkpoint has them and applies nothing.
    restore_dtype: dtype of the parameters; None keeps theirs.
    lazy_parameters: leave arrays unread, as `LazyArray`.

  Returns:
    Nested dictionaries of arrays.
  """
  arrays = open_checkpoint(find_checkpoint(path, step))
  if remap:
    arrays = state_utils.transformed(arrays, {}, state_transformation_fns)
  if restore_dtype is not None:
    arrays = {
        name: array.astype(restore_dtype) if name.startswith('target/')
        else array for name, array in arrays.items()}
  if lazy_parameters:
    return train_state_lib.nested(arrays)
  read: dict[str, np.ndarray] = {
      name: array.get() for name, array in arrays.items()}
  return train_state_lib.nested(read)
