"""What a run takes from a checkpoint that is not its own.

A checkpoint's entries get the model's names, by the assignment map and the
transformations, while they are still unread; then they are read one by one,
each process its part. No host ever holds the whole model.
"""

from collections.abc import Callable, Mapping
import functools
import logging
import re

import jax
import numpy as np
from t5x import checkpoints
from t5x import optimizer_slots
from t5x import partitioning
from t5x import state_utils
from t5x import train_state as train_state_lib

LazyArray = checkpoints.LazyArray
Parameters = train_state_lib.Parameters
ParameterInfos = train_state_lib.ParameterInfos


def load_parameters(
    infos: ParameterInfos,
    placement: Mapping[str, partitioning.NamedSharding],
    restore: checkpoints.RestoreCheckpointConfig | None,
    checkpoint: checkpoints.Checkpoint | None,
    init: Callable[[list[str]], Parameters],
) -> Parameters:
  """All parameters: from the initial checkpoint, and fresh where it is ruled.

  Args:
    infos: what is known of every parameter.
    placement: where every parameter lives.
    restore: the rules; see `RestoreCheckpointConfig`.
    checkpoint: the initial checkpoint; None initialises everything.
    init: from paths to fresh values.

  Returns:
    The parameters, placed.

  Raises:
    CheckpointError: if a parameter is in neither, or has another shape.
  """
  if checkpoint is None or restore is None:
    return init(list(infos))
  return load(restorable(infos, restore, checkpoint), infos, placement,
              restore, checkpoint.directory, init)


def restorable(
    infos: ParameterInfos,
    restore: checkpoints.RestoreCheckpointConfig,
    checkpoint: checkpoints.Checkpoint,
) -> dict[str, LazyArray]:
  """What a checkpoint offers under the names that the model has.

  Args:
    infos: what is known of every parameter.
    restore: the rules: the assignment map, then the transformations.
    checkpoint: the checkpoint.

  Returns:
    From `target/<path>`, `state/step`, `state/param_states/<path>/<slot>` and
    whatever else is in the checkpoint to unread array.

  Raises:
    CheckpointError: if the checkpoint is damaged.
    ValueError: if a rule leads nowhere.
  """
  arrays = optimizer_slots.with_t5x_names(
      with_stacked_layers(checkpoint.arrays, infos))
  wanted = train_state_lib.nested({
      **{f'target/{path}': info for path, info in infos.items()},
      **{f'state/param_states/{path}/{slot}': info
         for path, info in infos.items() if info.trainable
         for slot in optimizer_slots.SLOTS}})
  by_map = functools.partial(
      state_utils.apply_assignment_map,
      assignment_map=restore.assignment_map or ())
  return state_utils.transformed(
      arrays, wanted, (by_map, *restore.state_transformation_fns))


def load(
    arrays: Mapping[str, LazyArray],
    infos: ParameterInfos,
    placement: Mapping[str, partitioning.NamedSharding],
    restore: checkpoints.RestoreCheckpointConfig,
    directory: str,
    init: Callable[[list[str]], Parameters],
) -> Parameters:
  """The parameters of a checkpoint that is open, one at a time.

  Args:
    arrays: see `restorable`.
    infos: what is known of every parameter.
    placement: where every parameter lives.
    restore: the rules.
    directory: the checkpoint, for errors.
    init: from paths to fresh values.

  Returns:
    The parameters, placed.

  Raises:
    CheckpointError: see `load_parameters`.
  """
  sources = parameter_sources(arrays, infos, restore, directory)
  # Waiting for each keeps the host from holding what devices still copy.
  restored = {
      path: jax.block_until_ready(
          array.put(placement[path], infos[path].dtype))
      for path, array in sources.items() if array is not None}
  return init([path for path, array in sources.items() if array is None]
              ) | restored


def parameter_sources(
    arrays: Mapping[str, LazyArray],
    infos: ParameterInfos,
    restore: checkpoints.RestoreCheckpointConfig,
    directory: str,
) -> dict[str, LazyArray | None]:
  """Where every parameter's value is in a checkpoint; nothing is read yet.

  Args:
    arrays: see `restorable`.
    infos: what is known of every parameter.
    restore: the rules.
    directory: the checkpoint, for errors.

  Returns:
    From path to array, None where a rule leaves it to its initialiser.

  Raises:
    CheckpointError: see `load_parameters`.
  """
  names = {f'target/{path}': path for path in infos}
  fresh = [path for name, path in names.items()
           if name not in arrays and left_fresh(restore, path)]
  if missing := sorted(names.keys() - arrays.keys() - {
      f'target/{path}' for path in fresh}):
    raise checkpoints.CheckpointError(
        f'{directory} has no {missing[0]!r} ({len(missing)} of the '
        f"model's {len(names)} parameters are missing). Nearest: "
        f'{state_utils.nearest(missing[0], arrays)}. Map it with '
        'RestoreCheckpointConfig.assignment_map, or name None there to '
        'initialise it.')
  if fresh and not restore.fallback_to_scratch:
    raise checkpoints.CheckpointError(
        f'The assignment map leaves {fresh[0]!r} without a value; set '
        'RestoreCheckpointConfig.fallback_to_scratch = True to initialise it.')
  found = {path: arrays.get(name) for name, path in names.items()}
  for path, array in found.items():
    if array is not None and array.shape != infos[path].shape:
      raise checkpoints.CheckpointError(
          f'{directory}: {array.name} has shape {list(array.shape)}, but '
          f'the model has {list(infos[path].shape)}. Use the model file of the '
          "checkpoint's size.")
  return found


def left_fresh(
    restore: checkpoints.RestoreCheckpointConfig, path: str) -> bool:
  """Whether the first rule that matches a parameter gives it no source.

  Args:
    restore: the rules.
    path: of the parameter.
  """
  for regex, source in restore.assignment_map or ():
    if re.fullmatch(regex, f'target/{path}'):
      return source is None
  return False


def with_optimizer_state(
    state: train_state_lib.TrainState,
    arrays: Mapping[str, LazyArray],
    directory: str,
) -> train_state_lib.TrainState:
  """A fresh state with Adafactor's slots from a checkpoint.

  T5X restores them when it trains a whole model further. A parameter that the
  checkpoint has no slots of begins with fresh ones, as a prompt does.

  Args:
    state: where the run begins.
    arrays: see `restorable`.
    directory: the checkpoint, for errors.

  Returns:
    The state.

  Raises:
    CheckpointError: if some slots of a parameter are missing or have another
      shape.
  """
  restored, named = 0, optimizer_slots.named(state.opt_state)
  slots = {name: optimizer_slots.t5x_name(name) for name in named}
  known = {slot.rpartition('/')[0] for slot in slots.values()
           if slot is not None and slot in arrays}
  for name, slot in slots.items():
    if slot is None or slot.rpartition('/')[0] not in known:
      continue
    like, array = named[name], arrays.get(slot)
    if array is None or array.shape != like.shape:
      found = 'missing' if array is None else list(array.shape)
      raise checkpoints.CheckpointError(
          f'{directory}: {slot} is {found}, but the optimiser of this run has '
          f'{list(like.shape)}. Use the Adafactor settings of the checkpoint, '
          'or set RestoreCheckpointConfig.strict = False to begin with a fresh '
          'optimiser.')
    named[name] = array.put(like.sharding, like.dtype)
    restored += 1
  logging.info('%d optimiser slots are restored from %s; %d begin fresh.',
               restored, directory, len(named) - restored)
  return state.replace(opt_state=jax.tree.unflatten(
      jax.tree.structure(state.opt_state), list(named.values())))


def with_stacked_layers(
    arrays: Mapping[str, LazyArray], infos: ParameterInfos
) -> dict[str, LazyArray]:
  """Adds stacked views of per-layer entries that a scanned model wants.

  `encoder/encoder/mlp/wo/kernel` of a scanned model is `encoder/layers_0/mlp/
  wo/kernel`, `encoder/layers_1/...` in a checkpoint without scanning.

  Args:
    arrays: a checkpoint.
    infos: the model's parameters; an axis named `layers` is a stack.

  Returns:
    The checkpoint's entries and the views, each read layer by layer.
  """
  views = dict(arrays)
  for path, info in infos.items():
    if f'target/{path}' in arrays or 'layers' not in info.axes:
      continue
    axis = info.axes.index('layers')
    stack, _, rest = path.split('/', 2)
    names = [f'target/{stack}/layers_{i}/{rest}'
             for i in range(info.shape[axis])]
    if all(name in arrays for name in names):
      views[f'target/{path}'] = _stacked(
          f'target/{path}', [arrays[name] for name in names], axis)
  return views


def _stacked(name: str, layers: list[LazyArray], axis: int) -> LazyArray:
  """Several arrays as one with a new axis."""
  shape = list(layers[0].shape)
  shape.insert(axis, len(layers))

  def read_slice(index: tuple[slice, ...]) -> np.ndarray:
    rest = index[:axis] + index[axis + 1:]
    chosen = layers[index[axis]]
    return np.stack([layer.read_slice(rest) for layer in chosen], axis)

  return LazyArray(name, tuple(shape), layers[0].dtype, read_slice)
