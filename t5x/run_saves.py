"""A run's own saves.

A save holds what a run moves and nothing else:

    checkpoint_<step>/state/          Orbax: trainable parameters under target/,
                                      optimiser state and step under state/
    checkpoint_<step>/record.json     what else a resumed run must know
    checkpoint_<step>/manifest.json   SHA-256 of every file, checked on load

For a prompt that is kilobytes; when everything is trainable it is the model.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import logging
import os
import re
from typing import Any, Self

from etils import epath
import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp
from t5x import checkpoint_configs
from t5x import checkpoint_folders
from t5x import checkpoint_utils
from t5x import lazy_arrays
from t5x import manifest
from t5x import optimizer_slots
from t5x import state_utils
from t5x import train_state as train_state_lib

CheckpointError = lazy_arrays.CheckpointError
TrainState = train_state_lib.TrainState


@dataclasses.dataclass(frozen=True)
class BaseRecord:
  """Which frozen model a run stands on.

  Attributes:
    path: the checkpoint it came from; None if it was initialised.
    step: that checkpoint's step.
    fingerprint: of the frozen parameters, see `t5x.fingerprint`.
  """

  path: str | None
  step: int
  fingerprint: str


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """What a resumed run must know besides arrays.

  Attributes:
    first_step: absolute step at which the run began; periods count from it.
    seed: seed of initialisation, dropout and data order.
    batches: batches taken from the training data so far.
    batch_size: rows of each of them; with another size they are other batches.
    base: the frozen model; None when everything is trainable.
    task: name of the task or mixture that is trained on; None in records that
      do not say it.
    window: metric sums since the last report, so that the next report of a
      resumed run covers the same steps.
  """

  first_step: int
  seed: int
  batches: int = 0
  batch_size: int | None = None
  base: BaseRecord | None = None
  task: str | None = None
  window: Mapping[str, Sequence[float]] = dataclasses.field(
      default_factory=dict)

  def to_json(self) -> str:
    """As text."""
    return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)

  @classmethod
  def from_json(cls, text: str) -> Self:
    """From text."""
    fields = json.loads(text)
    if fields['base'] is not None:
      fields['base'] = BaseRecord(**fields['base'])
    return cls(**fields)


class Checkpointer:
  """Saves a run's moving parts into `checkpoint_<step>` folders."""

  def __init__(
      self,
      directory: str,
      *,
      keep: int | None = None,
      dtype: str | None = None,
      state_transformation_fns: Sequence[
          checkpoint_configs.SaveStateTransformationFn] = (),
  ):
    """Removes what interrupted saves left behind.

    Args:
      directory: the run's folder.
      keep: see `SaveCheckpointConfig`.
      dtype: see `SaveCheckpointConfig`.
      state_transformation_fns: see `SaveCheckpointConfig`.
    """
    self.directory = directory
    self.dtype = dtype
    self._keep = keep
    self._transformations = tuple(state_transformation_fns)
    folder = epath.Path(directory)
    if jax.process_index() == 0 and folder.is_dir():
      for path in folder.iterdir():
        if re.match(r'checkpoint_\d+\.tmp-', path.name):
          path.rmtree()

  def save(self, state: TrainState, record: RunRecord) -> None:
    """Saves; a save that does not finish leaves the earlier ones untouched.

    Args:
      state: what to save; its frozen part is not.
      record: what a resumed run must know besides.

    Raises:
      CheckpointError: if it could not be written.
    """
    step = int(state.step)
    final = epath.Path(
        checkpoint_folders.get_checkpoint_dir(self.directory, step))
    if final.exists():
      logging.info('%s is there already; not saved again.', final)
      return
    temporary = final.parent / f'{final.name}.tmp-0'
    try:
      with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(
            os.path.abspath(temporary / 'state'), self._tree(state))
      if jax.process_index() == 0:
        (temporary / checkpoint_folders.RECORD).write_text(record.to_json())
        manifest.write(temporary)
        temporary.rename(final)
    except (OSError, ValueError) as error:
      if jax.process_index() == 0:
        temporary.rmtree(missing_ok=True)
      raise CheckpointError(
          f'{final} could not be written ({error}). Earlier saves are '
          'untouched; see that the disk has space and that the folder can be '
          'written to, and start again to continue.') from error
    _barrier(f'saved {step}')
    if self._keep is not None and jax.process_index() == 0:
      for old in self._superfluous(
          checkpoint_folders.all_steps(self.directory), self._keep):
        checkpoint_utils.remove_checkpoint_dir(
            checkpoint_folders.get_checkpoint_dir(self.directory, old))

  def _tree(self, state: TrainState) -> Mapping[str, Any]:
    """What is written."""
    trainable = state.trainable
    if self.dtype is not None:
      trainable = {k: x.astype(self.dtype) for k, x in trainable.items()}
    tree: Mapping[str, Any] = _state_dict(state.replace(trainable=trainable))
    infos: Mapping[str, Any] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    for transform in self._transformations:
      tree, infos = transform(tree, infos)
    return tree

  def _superfluous(self, steps: Sequence[int], keep: int) -> Sequence[int]:
    """Which saves may go, of all there are; those that are pinned stay."""
    return steps[:-keep]


def _state_dict(state: TrainState) -> dict[str, Any]:
  """What of a state is saved, nested as T5X nests it."""
  return {
      'target': train_state_lib.nested(state.trainable),
      'state': {'step': state.step,
                'optimizer': optimizer_slots.named(state.opt_state)},
  }


def make_checkpointer(
    config: checkpoint_configs.SaveCheckpointConfig, directory: str
) -> Checkpointer:
  """The checkpointer that a configuration asks for."""
  make = config.checkpointer_cls or Checkpointer
  options = {}
  if config.state_transformation_fns:
    options['state_transformation_fns'] = config.state_transformation_fns
  return make(directory, keep=config.keep, dtype=config.dtype, **options)


class Save(checkpoint_folders.Checkpoint):
  """One of our own saves."""

  @functools.cached_property
  def record(self) -> RunRecord:
    """What it says of its run.

    Raises:
      CheckpointError: if it is none of ours, or damaged.
    """
    try:
      _ = self.arrays  # Opening compares the record with its sum.
      return RunRecord.from_json((
          epath.Path(self.directory) / checkpoint_folders.RECORD).read_text())
    except (OSError, ValueError, TypeError, KeyError) as error:
      raise CheckpointError(
          f'{self.directory} cannot be resumed from: {error}') from error


def restore_run(
    save: Save,
    template: TrainState,
    state_transformation_fns: Sequence[
        checkpoint_configs.RestoreStateTransformationFn] = (),
) -> TrainState:
  """The state saved in one of our own saves.

  Args:
    save: the save.
    template: a state of this run or its template: gives names, shapes, dtypes
      and placement.
    state_transformation_fns: see `RestoreCheckpointConfig`; told that the run
      is resuming.

  Returns:
    The saved state, with the frozen part of `template`.

  Raises:
    CheckpointError: if the save does not hold what this run trains.
  """
  arrays = state_utils.transformed(
      save.arrays, _state_dict(template),
      state_transformation_fns, is_resuming=True)
  targets = {name.removeprefix('target/') for name in arrays
             if name.startswith('target/')}
  if different := sorted(targets ^ template.trainable.keys()):
    raise CheckpointError(
        f'{save.directory} holds other trainable parameters than this run: '
        f'{different[0]} is only in one of them. Use another MODEL_DIR, or the '
        'PROMPT_REGEX that the run was started with.')

  def restored(name: str, like: jax.Array) -> jax.Array:
    array = arrays.get(name)
    if array is None or array.shape != like.shape:
      found = 'nothing' if array is None else list(array.shape)
      raise CheckpointError(
          f'{save.directory}: {name} is {found}, but this run has '
          f'{list(like.shape)}. Use another MODEL_DIR, or the configuration '
          'that the run was started with.')
    return array.put(like.sharding, like.dtype)

  named = optimizer_slots.named(template.opt_state)
  opt_state = jax.tree.unflatten(
      jax.tree.structure(template.opt_state),
      [restored(f'state/optimizer/{k}', x) for k, x in named.items()])
  return template.replace(
      step=restored('state/step', template.step),
      trainable={path: restored(f'target/{path}', x)
                 for path, x in template.trainable.items()},
      opt_state=opt_state)


def _barrier(name: str) -> None:
  """Waits for the other processes, if there are any."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
