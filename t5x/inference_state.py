"""Parameters to evaluate or to infer with, without an optimiser.

They come from a whole model's checkpoint, or from two places: a run that
trained a part of a model saved only that part, and its record names the frozen
base that the rest comes from.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import re

import jax
from jaxtyping import Array
import numpy as np
from t5x import checkpoints
from t5x import fingerprint
from t5x import hugging_face
from t5x import initialization
from t5x import models
from t5x import partitioning
from t5x import restoration
from t5x import train_state as train_state_lib

Parameters = train_state_lib.Parameters
ParameterInfos = train_state_lib.ParameterInfos
TrainState = train_state_lib.TrainState

# What a run may have held its frozen model in, the usual one first. Its
# fingerprint is of those bits.
_BASE_DTYPES = ('float32', 'bfloat16')


def directories(restore: checkpoints.RestoreCheckpointConfig) -> list[str]:
  """The checkpoints that a configuration names, in the order of their steps.

  Args:
    restore: with mode 'all' every checkpoint of a run's folder; with 'specific'
      the given ones; with 'latest' the last of a folder.

  Returns:
    Folders.

  Raises:
    CheckpointError: if there is none.
  """
  paths = ([restore.path] if isinstance(restore.path, str)
           else list(restore.path or ()))
  if restore.mode != 'all':
    if not paths:
      raise checkpoints.CheckpointError(
          'RestoreCheckpointConfig.path names no checkpoint; set '
          'CHECKPOINT_PATH.')
    return [
        initialization.directory_of(dataclasses.replace(restore, path=path))
        for path in paths]
  if len(paths) != 1 or not checkpoints.all_steps(paths[0]):
    raise checkpoints.CheckpointError(
        f"RestoreCheckpointConfig.mode is 'all', but {restore.path!r} is not "
        'one folder that holds checkpoint_<step> folders.')
  return [checkpoints.get_checkpoint_dir(paths[0], step)
          for step in checkpoints.all_steps(paths[0])]


class Restorer:
  """Loads checkpoints of one model one after the other.

  Attributes:
    infos: what is known of every parameter.
    placement: where every parameter lives.
  """

  def __init__(
      self,
      model: models.BaseModel,
      partitioner: partitioning.PjitPartitioner,
      restore: checkpoints.RestoreCheckpointConfig,
      input_shapes: Mapping[str, tuple[int, ...]],
      *,
      seed: int | None = None,
      base_checkpoint_path: str | None = None,
  ):
    """Nothing is read yet.

    Args:
      model: gives the parameters' shapes.
      partitioner: gives the mesh.
      restore: the rules of restoring.
      input_shapes: shapes of some batch.
      seed: of parameters that the rules leave to their initialisers; None
        forbids such rules, unless a run's save has the parameters.
      base_checkpoint_path: where a run's frozen base is, if not where it was.
    """
    self._init_fn: train_state_lib.InitFn = lambda key: (
        model.get_initial_variables(key, input_shapes))
    self._model = model
    self._restore = restore
    self._seed = seed
    self._base_path = base_checkpoint_path
    self._replicated = partitioner.sharding()
    self._base: tuple[str, Parameters] | None = None
    described = train_state_lib.describe(self._init_fn, model.optimizer_def)
    self.infos = initialization.restored_dtypes(described, restore)
    self.placement = train_state_lib.shardings(self.infos, partitioner)

  def state(self, directory: str) -> TrainState:
    """The parameters of a checkpoint.

    Args:
      directory: `checkpoint_<step>` of a model or of a run.

    Returns:
      A state at the checkpoint's step that counts everything as frozen.

    Raises:
      CheckpointError: if something cannot be restored, or a run's base is not
        the one that it was trained on.
      ValueError: if a check of a frozen model refuses it.
    """
    checkpoint = checkpoints.Save(directory)
    base = (checkpoint.record.base if checkpoints.is_run_save(directory)
            else None)
    parameters = (self._whole(checkpoint) if base is None
                  else self._two_parts(checkpoint, base))
    return TrainState(
        jax.device_put(np.int32(checkpoint.step), self._replicated), {},
        parameters, ())

  def fingerprint(self, state: TrainState) -> str:
    """Names the exact parameters of a state."""
    return fingerprint.fingerprint(state.frozen)

  def _whole(self, checkpoint: checkpoints.Checkpoint) -> Parameters:
    """Parameters of a checkpoint that holds a model."""
    if self._restore.fallback_to_scratch and self._seed is None:
      raise checkpoints.CheckpointError(
          f'{checkpoint.directory} is no save of a run that names its frozen '
          'base, and RestoreCheckpointConfig.fallback_to_scratch needs a seed: '
          'set evaluate.fallback_init_rng or infer.fallback_init_rng, as the '
          'run files that take a PROMPT_FILE do.')
    hugging_face.require_same_model(checkpoint.directory, self._model)
    parameters = restoration.load_parameters(
        self.infos, self.placement, self._restore, checkpoint,
        lambda paths: train_state_lib.initialize(
            self._init_fn, jax.random.key(self._seed or 0), paths,
            self.placement))
    initialization.check_base(
        self._restore, parameters, checkpoint.directory)
    return parameters

  def _two_parts(
      self, save: checkpoints.Checkpoint, base: checkpoints.BaseRecord
  ) -> Parameters:
    """What a run trained, over the frozen base that it names."""
    directory, arrays = save.directory, save.arrays
    trained = [name.removeprefix('target/') for name in arrays
               if name.startswith('target/')]
    self._require_trained(directory, base, trained, arrays)
    frozen = self._frozen(directory, base, trained)
    return frozen | {
        path: arrays[f'target/{path}'].put(
            self.placement[path], self.infos[path].dtype)
        for path in trained}

  def _require_trained(
      self,
      directory: str,
      base: checkpoints.BaseRecord,
      trained: list[str],
      arrays: Mapping[str, checkpoints.LazyArray],
  ) -> None:
    """Fails if what a run trained has no place in the model, or two sources."""
    for path in trained:
      found = arrays[f'target/{path}'].shape
      wanted = self.infos[path].shape if path in self.infos else None
      if found != wanted:
        raise checkpoints.CheckpointError(
            f'{directory} holds {path} {list(found)}, but the model has '
            f'{"no such parameter" if wanted is None else list(wanted)}. Give '
            'the model files and PROMPT_LENGTH that the run was started with.')
      if self._seed is not None and restoration.left_fresh(
          self._restore, path):
        raise checkpoints.CheckpointError(
            f"{directory} is a run's own save and holds {path}, but this "
            'configuration makes it anew, for instance from a PROMPT_FILE. To '
            "use the run's, give t5x/configs/runs/eval.gin or infer.gin; to "
            f'use the file, give the frozen model {base.path} as the '
            'checkpoint.')

  def _frozen(
      self, directory: str, base: checkpoints.BaseRecord, trained: list[str]
  ) -> Parameters:
    """The base of a run, read once for all of its saves."""
    if self._base is not None and self._base[0] == base.fingerprint:
      return self._base[1]
    self._base = None  # Makes room before the next one is read.
    path = self._base_path or base.path
    if path is None:
      raise checkpoints.CheckpointError(
          f'{directory} was trained on a frozen model that was initialised, '
          'not restored, so there is nothing to take it from.')
    infos = {p: i for p, i in self.infos.items() if p not in trained}
    rules = tuple(
        (regex, source) for regex, source in self._restore.assignment_map or ()
        if any(re.fullmatch(regex, f'target/{p}') for p in infos)
        or not any(re.fullmatch(regex, f'target/{p}') for p in trained))
    restore = dataclasses.replace(self._restore, assignment_map=rules)
    try:
      frozen = checkpoints.Checkpoint(checkpoints.find_checkpoint(path))
      hugging_face.require_same_model(frozen.directory, self._model)
      sources = restoration.parameter_sources(
          restoration.restorable(infos, restore, frozen), infos, restore,
          frozen.directory)
    except checkpoints.CheckpointError as error:
      raise checkpoints.CheckpointError(
          f'{directory} was trained on the frozen model {base.path}; at {path} '
          f'it cannot be restored: {error} If it has moved, name the place '
          'with --gin.BASE_CHECKPOINT_PATH=...') from error
    for dtype in _BASE_DTYPES:
      reading = _Reading(sources, infos, self.placement, dtype)
      if fingerprint.fingerprint(reading) == base.fingerprint:
        self._base = base.fingerprint, reading.parameters
        return reading.parameters
    raise checkpoints.CheckpointError(
        f'{directory} was trained on the frozen model {base.path} '
        f'({base.fingerprint[:12]}), but {path} holds other parameters. Name '
        'the right place with --gin.BASE_CHECKPOINT_PATH=...')


class _Reading(Mapping[str, Array]):
  """Arrays that are read when asked for, and kept in another dtype.

  A fingerprint asks for each array once, so never more than one is held in two
  dtypes.

  Attributes:
    parameters: what has been read so far, in the dtypes of `infos`.
  """

  def __init__(
      self,
      sources: Mapping[str, checkpoints.LazyArray | None],
      infos: ParameterInfos,
      placement: Mapping[str, partitioning.NamedSharding],
      dtype: str,
  ):
    self.parameters: Parameters = {}
    self._sources = {path: source for path, source in sources.items()
                     if source is not None}
    self._read: Callable[[str], Array] = lambda path: (
        self._sources[path].put(placement[path], dtype))
    self._infos = infos

  def __getitem__(self, path: str) -> Array:
    value = self._read(path)
    self.parameters[path] = value.astype(self._infos[path].dtype)
    return value

  def __iter__(self) -> Iterator[str]:
    return iter(self._sources)

  def __len__(self) -> int:
    return len(self._sources)
