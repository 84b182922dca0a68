"""The state a run starts from.

In this order: the run's own last save, else the initial checkpoint, else fresh
values. The frozen part is never in a save; it always comes from where the run
took it at first, and its fingerprint must not have changed.
"""

from collections.abc import Mapping
import dataclasses
import logging
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np
from t5x import checkpoints
from t5x import fingerprint
from t5x import hugging_face
from t5x import models
from t5x import restoration
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib

Parameters = train_state_lib.Parameters
ParameterInfos = train_state_lib.ParameterInfos


@dataclasses.dataclass(frozen=True)
class Origin:
  """What is decided before any parameter is read.

  Attributes:
    seed: of initialisation, dropout and data order.
    first_step: absolute step at which the run began, or now begins.
    last_save: the run's last save; None when it begins.
    initial_checkpoint: None for fresh values.
    step: absolute step of the state that the process will start with.
  """

  seed: int
  first_step: int
  last_save: checkpoints.Save | None = None
  initial_checkpoint: checkpoints.Checkpoint | None = None
  step: int = 0

  @property
  def batches(self) -> int:
    """Batches that the run has taken already."""
    return self.last_save.record.batches if self.last_save else 0

  def keys(self, hardware: bool = False) -> tuple[Array, Array]:
    """Keys of initialisation and of dropout.

    Args:
      hardware: use the hardware's generator.

    Returns:
      Two random keys that depend on the seed alone.
    """
    implementation = 'unsafe_rbg' if hardware else 'threefry2x32'
    init_key, dropout_key = jax.random.split(
        jax.random.key(self.seed, impl=implementation))
    return init_key, dropout_key

  def last_step(
      self, total_steps: int | None, relative_steps: int | None
  ) -> int:
    """The absolute step to stop at.

    Args:
      total_steps: `TRAIN_STEPS`.
      relative_steps: `TRAIN_STEPS_RELATIVE`; wins if it is set.

    Returns:
      An absolute step. A run that has already reached it is complete.

    Raises:
      ValueError: if no step lies between here and there.
    """
    if relative_steps is not None:
      total_steps = self.first_step + relative_steps
    if total_steps is None:
      raise ValueError('Neither TRAIN_STEPS nor TRAIN_STEPS_RELATIVE is set.')
    complete = self.last_save is not None and total_steps == self.step
    if total_steps <= self.step and not complete:
      begun = self.last_save or self.initial_checkpoint
      place = begun.directory if begun else 'from scratch'
      raise ValueError(
          f'TRAIN_STEPS is {total_steps:,}, but the run is at step '
          f'{self.step:,} ({place}). It counts absolute steps, pretraining '
          f'included; set it above {self.step:,}, or set '
          'TRAIN_STEPS_RELATIVE.')
    return total_steps


def require_no_initializer(initializer_cls: Any, program: str) -> None:
  """Fails if a configuration would have a state begin in a way of its own.

  Args:
    initializer_cls: what T5X calls `train_state_initializer_cls`.
    program: whose argument it is.

  Raises:
    ValueError: if it is not None.
  """
  if initializer_cls is not None:
    raise ValueError(
        f'{program}.train_state_initializer_cls is {initializer_cls!r}; how a '
        'state begins is not configurable here. Leave it out; to start from '
        'other values, use utils.RestoreCheckpointConfig.')


def require_same_batches(origin: Origin, batch_size: int) -> None:
  """Fails if a resumed run would be given other batches than it has had.

  Args:
    origin: the decision.
    batch_size: rows of a batch.

  Raises:
    CheckpointError: naming both sizes.
  """
  if origin.last_save is None:
    return
  record = origin.last_save.record
  if record.batch_size not in (None, batch_size):
    raise checkpoints.CheckpointError(
        f'{origin.last_save.directory} was trained on batches of '
        f'{record.batch_size} rows, but BATCH_SIZE is {batch_size}, so this '
        'run would see other data. Give BATCH_SIZE as before, or use another '
        'MODEL_DIR.')


def require_same_model(origin: Origin, model: models.BaseModel) -> None:
  """Fails if the initial checkpoint says that it is of another network.

  Args:
    origin: the decision.
    model: what is trained.

  Raises:
    CheckpointError: see `hugging_face.require_same_model`.
  """
  if origin.initial_checkpoint is not None:
    hugging_face.require_same_model(
        origin.initial_checkpoint.directory, model)


@dataclasses.dataclass(frozen=True)
class Start:
  """A state to train from, and where it came from.

  Attributes:
    state: the state.
    record: what every save of the run repeats.
    initial: the trainable parameters as the run began with them, for measuring
      how far they move; empty when everything is trainable.
    infos: what is known of every parameter.
  """

  state: train_state_lib.TrainState
  record: checkpoints.RunRecord
  initial: Mapping[str, Array]
  infos: ParameterInfos


def find_origin(
    model_dir: str,
    restore: checkpoints.RestoreCheckpointConfig | None,
    seed: int | None,
) -> Origin:
  """Decides where a run starts from.

  Args:
    model_dir: the run's folder.
    restore: its initial checkpoint; None or without a path for fresh values.
    seed: the seed asked for; None takes the run's own, or draws one.

  Returns:
    The decision.

  Raises:
    CheckpointError: if a checkpoint is missing or damaged, or the run was
      begun with another seed.
  """
  if '://' in model_dir:
    raise ValueError(
        f'MODEL_DIR is {model_dir}; runs are written to local or mounted '
        'folders only. Checkpoints and tasks may be remote.')
  initial = None
  if restore is not None and restore.path:
    initial = checkpoints.Checkpoint(directory_of(restore))
    logging.info('The initial checkpoint is %s.', initial.directory)
  step = checkpoints.latest_step(model_dir)
  if step is None:
    first_step = 0 if initial is None else initial.step
    return Origin(
        _drawn_seed() if seed is None else seed, first_step,
        initial_checkpoint=initial, step=first_step)
  last = checkpoints.Save(checkpoints.get_checkpoint_dir(model_dir, step))
  record = last.record
  if seed not in (None, record.seed):
    raise checkpoints.CheckpointError(
        f'{model_dir} holds a run with seed {record.seed}, but RANDOM_SEED is '
        f'{seed}. Use another MODEL_DIR to start a new run, or that seed to '
        'continue.')
  return Origin(record.seed, record.first_step, last, initial, step)


def _drawn_seed() -> int:
  """A seed from the system, the same in all processes."""
  seed = np.random.SeedSequence().generate_state(1)[0] >> 1
  if jax.process_count() > 1:
    seed = multihost_utils.broadcast_one_to_all(np.int32(seed))
  return int(seed)


def directory_of(restore: checkpoints.RestoreCheckpointConfig) -> str:
  """The folder of the one checkpoint that a configuration names.

  Raises:
    CheckpointError: if it names none, or several.
  """
  path = restore.path
  paths = [path] if isinstance(path, str) else list(path or ())
  if len(paths) != 1:
    raise checkpoints.CheckpointError(
        f'RestoreCheckpointConfig.path is {path!r}; expected one path.')
  if restore.mode == 'all':
    raise checkpoints.CheckpointError(
        "RestoreCheckpointConfig.mode is 'all', which only evaluation knows; "
        "set it to 'specific' or 'latest'.")
  found = checkpoints.find_checkpoint(paths[0])
  if restore.mode == 'specific' and checkpoints.all_steps(paths[0]):
    raise checkpoints.CheckpointError(
        f'{paths[0]} holds several checkpoints; name one of them, for instance '
        f'{found}, or set RestoreCheckpointConfig.mode to latest.')
  return found


def restored_dtypes(
    infos: ParameterInfos,
    restore: checkpoints.RestoreCheckpointConfig | None,
) -> ParameterInfos:
  """What is restored has the dtype that was asked for, now and when resumed.

  Args:
    infos: what is known of every parameter.
    restore: the rules; None or without a path for fresh values.

  Returns:
    The same with other dtypes.
  """
  if restore is None or not restore.path or restore.dtype is None:
    return infos
  fresh = [regex for regex, source in restore.assignment_map or ()
           if source is None]
  dtype = jnp.dtype(restore.dtype)
  return {
      path: info if any(re.fullmatch(r, f'target/{path}') for r in fresh)
      else dataclasses.replace(info, dtype=dtype)
      for path, info in infos.items()
  }


def check_base(
    restore: checkpoints.RestoreCheckpointConfig,
    parameters: Parameters,
    directory: str | None,
) -> None:
  """Shows what was restored to the checks of a configuration.

  Args:
    restore: has the checks, and the rules.
    parameters: all of a model's.
    directory: the checkpoint; None if the model was initialised.

  Raises:
    ValueError: if a check refuses them.
  """
  restored = {path: value for path, value in parameters.items()
              if not restoration.left_fresh(restore, path)}
  for check in restore.base_checks:
    check(restored, directory)


def start(
    origin: Origin,
    *,
    trainer: trainer_lib.Trainer,
    infos: ParameterInfos,
    init_fn: train_state_lib.InitFn,
    restore: checkpoints.RestoreCheckpointConfig | None,
    init_key: Array,
    batch_size: int | None = None,
) -> Start:
  """Builds the state that `origin` decided on.

  Args:
    origin: the decision.
    trainer: gives mesh and optimiser.
    infos: what is known of every parameter of the model.
    init_fn: from a key to the variables of the model.
    restore: rules for the initial checkpoint.
    init_key: random key of fresh values.
    batch_size: rows of a batch, to be remembered.

  Returns:
    The start.

  Raises:
    CheckpointError: if something cannot be restored, or the frozen model is
      not the one that the run began with.
    ValueError: if a check of what was restored refuses it.
  """
  infos = restored_dtypes(infos, restore)
  placement = train_state_lib.shardings(infos, trainer.partitioner)
  template = train_state_lib.template(infos, placement, trainer.optimizer)
  save = origin.last_save
  transformations = restore.state_transformation_fns if restore else ()
  if save is not None and not template.frozen:
    state = checkpoints.restore_run(save, template, transformations)
    return Start(state, save.record, {}, infos)

  def fresh(paths: list[str]) -> Parameters:
    return train_state_lib.initialize(init_fn, init_key, paths, placement)

  initial = origin.initial_checkpoint
  if initial is None or restore is None:
    state = train_state_lib.create(
        origin.first_step, fresh(list(infos)), template, trainer.optimizer)
  else:
    arrays = restoration.restorable(infos, restore, initial)
    state = train_state_lib.create(
        origin.first_step,
        restoration.load(
            arrays, infos, placement, restore, initial.directory, fresh),
        template, trainer.optimizer)
    if restore.strict and save is None:
      state = restoration.with_optimizer_state(
          state, arrays, initial.directory)
  begun_with, base = {}, None
  if state.frozen:
    # Steps donate what they are given.
    begun_with = jax.tree.map(jnp.copy, state.trainable)
    base = checkpoints.BaseRecord(
        initial.directory if initial else None, origin.first_step,
        fingerprint.fingerprint(state.frozen))
  if save is None:
    if restore is not None:
      check_base(
          restore, state.frozen | (state.trainable if initial else {}),
          initial.directory if initial else None)
    record = checkpoints.RunRecord(
        origin.first_step, origin.seed, batch_size=batch_size, base=base)
    return Start(state, record, begun_with, infos)
  _require_same_base(save, base)
  state = checkpoints.restore_run(save, state, transformations)
  return Start(state, save.record, begun_with, infos)


def _require_same_base(
    save: checkpoints.Save, found: checkpoints.BaseRecord | None) -> None:
  """Fails if a run would go on with another frozen model."""
  recorded = save.record.base
  if recorded is None or found is None or (
      recorded.fingerprint != found.fingerprint):
    raise checkpoints.CheckpointError(
        f'{save.directory} was trained on the frozen model '
        f'{recorded and recorded.path} '
        f'({recorded and recorded.fingerprint[:12]}), but this run would '
        f'continue it on {found and found.path} '
        f'({found and found.fingerprint[:12]}). Set INITIAL_CHECKPOINT_PATH to '
        'the first, or use another MODEL_DIR.')
