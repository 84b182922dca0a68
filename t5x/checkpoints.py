"""Saving a run, finding its last save, and reading checkpoints of any layout.

A save holds what a run moves and nothing else:

    checkpoint_<step>/state/          Orbax: trainable parameters under target/,
                                      optimiser state and step under state/
    checkpoint_<step>/record.json     what else a resumed run must know
    checkpoint_<step>/manifest.json   SHA-256 of every file, checked on load

For a prompt that is kilobytes; when everything is trainable it is the model.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import logging
import os
import re
from typing import Any, Self

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp
from t5x import checkpoint_importer
from t5x import manifest
from t5x import state_utils
from t5x import train_state as train_state_lib
import tensorstore as ts

CheckpointError = checkpoint_importer.CheckpointError
LazyArray = checkpoint_importer.LazyArray
TrainState = train_state_lib.TrainState

_DTYPES = (None, 'float32', 'bfloat16', 'float16')
_RECORD = 'record.json'


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
  """

  dtype: str | None = 'float32'
  period: int | None = None
  checkpoint_steps: Sequence[int] | None = None
  keep: int | None = None
  save_dataset: bool = False
  checkpointer_cls: Any = None

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
    mode: 'specific' or 'latest'.
    assignment_map: pairs of a regex on `target/<path>` and the checkpoint's
      name for it; None instead of a name leaves the parameter to its
      initialiser.
    strict: accepted for T5X's gin files; a parameter that is neither in the
      checkpoint nor named by the map is always an error.
    fallback_to_scratch: allow None in the map.
    dtype: dtype to restore to; None keeps the model's.
  """

  path: str | Sequence[str] | None = None
  mode: str = 'latest'
  assignment_map: state_utils.AssignmentMap | None = None
  strict: bool = True
  fallback_to_scratch: bool = False
  dtype: str | None = None

  def __post_init__(self):
    _require_dtype('RestoreCheckpointConfig', self.dtype)
    if self.mode not in ('specific', 'latest'):
      raise ValueError(
          f'RestoreCheckpointConfig.mode is {self.mode!r}; expected '
          "'specific' or 'latest'.")


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
    window: metric sums since the last report, so that the next report of a
      resumed run covers the same steps.
  """

  first_step: int
  seed: int
  batches: int = 0
  batch_size: int | None = None
  base: BaseRecord | None = None
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


def get_checkpoint_dir(directory: str, step: int) -> str:
  """Where the save of a step is."""
  return os.path.join(directory, f'checkpoint_{step}')


def all_steps(directory: str) -> list[int]:
  """Steps of the finished saves in a folder, ascending."""
  folder = epath.Path(directory)
  if not folder.is_dir():
    return []
  matches = (re.fullmatch(r'checkpoint_(\d+)', p.name)
             for p in folder.iterdir())
  return sorted(int(match[1]) for match in matches if match)


def latest_step(directory: str) -> int | None:
  """The last finished save; None if there is none."""
  return max(all_steps(directory), default=None)


def find_checkpoint(path: str, step: int | None = None) -> str:
  """The folder of one checkpoint.

  Args:
    path: that folder, its `checkpoint` file, or the folder above it.
    step: which one, if `path` holds several; None takes the last.

  Returns:
    A folder.

  Raises:
    CheckpointError: if there is none.
  """
  folder = epath.Path(path)
  if folder.name == 'checkpoint' and not folder.is_dir():
    folder = folder.parent
  if step is None and (
      (folder / 'checkpoint').exists() or (folder / 'state').exists()):
    return os.fspath(folder)
  steps = all_steps(path)
  wanted = max(steps, default=None) if step is None else step
  if wanted is None or wanted not in steps:
    raise CheckpointError(
        f'No checkpoint {"" if step is None else f"of step {step} "}at {path}. '
        'Expected a folder checkpoint_<step> or one that holds such folders'
        f'{f"; it holds steps {steps}" if steps else ""}.')
  return get_checkpoint_dir(os.fspath(folder), wanted)


def open_checkpoint(directory: str) -> dict[str, LazyArray]:
  """Opens one checkpoint, in T5X's native layout or in Orbax's (ours too).

  Args:
    directory: `checkpoint_<step>`, local or remote.

  Returns:
    From flat name (`target/...`, `state/step`) to lazy array.

  Raises:
    CheckpointError: if it is damaged or no checkpoint.
  """
  folder = epath.Path(directory)
  if (folder / _RECORD).exists() or (folder / manifest.NAME).exists():
    try:
      manifest.verify(folder)
    except manifest.ManifestError as error:
      raise CheckpointError(str(error)) from error
  if (folder / 'state' / '_METADATA').exists():
    return _read_orbax(os.fspath(folder / 'state'))
  return checkpoint_importer.read_native(os.fspath(folder))


def _read_orbax(directory: str) -> dict[str, LazyArray]:
  """Lazy arrays of an Orbax folder, read through tensorstore."""
  with ocp.PyTreeCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(directory).item_metadata
  store = checkpoint_importer.open_store(directory)
  ocdbt = ts.KvStore.open(
      {'driver': 'ocdbt', 'base': store.spec().to_json()}).result()
  leaves = jax.tree_util.tree_flatten_with_path(metadata.tree)[0]
  arrays = {}
  for path, leaf in leaves:
    keys = [str(entry.key) for entry in path]
    name = '/'.join(keys)
    arrays[name] = LazyArray(
        name, tuple(leaf.shape), np.dtype(leaf.dtype),
        checkpoint_importer.zarr_reader(
            ocdbt / f'{".".join(keys)}/', f'{directory}: {name}',
            tuple(leaf.shape), ts.dtype(leaf.dtype)))
  return arrays


def load_t5x_checkpoint(
    path: str,
    step: int | None = None,
    *,
    restore_dtype: Any = None,
    lazy_parameters: bool = False,
) -> dict[str, Any]:
  """All of a checkpoint as nested dictionaries `{'target', 'state'}`.

  Args:
    path: see `find_checkpoint`.
    step: see `find_checkpoint`.
    restore_dtype: dtype of the parameters; None keeps theirs.
    lazy_parameters: leave arrays unread, as `LazyArray`.

  Returns:
    Nested dictionaries of arrays.
  """
  arrays = open_checkpoint(find_checkpoint(path, step))
  if lazy_parameters:
    return train_state_lib.nested(arrays)

  def read(name: str, array: LazyArray) -> np.ndarray:
    value = array.get()
    cast = restore_dtype is not None and name.startswith('target/')
    return value.astype(restore_dtype) if cast else value

  return train_state_lib.nested(
      {name: read(name, array) for name, array in arrays.items()})


class Checkpointer:
  """Saves a run's moving parts into `checkpoint_<step>` folders."""

  def __init__(
      self,
      directory: str,
      *,
      keep: int | None = None,
      dtype: str | None = None,
  ):
    """Removes what interrupted saves left behind.

    Args:
      directory: the run's folder.
      keep: see `SaveCheckpointConfig`.
      dtype: see `SaveCheckpointConfig`.
    """
    self.directory = directory
    self.dtype = dtype
    self._keep = keep
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
    final = epath.Path(get_checkpoint_dir(self.directory, step))
    if final.exists():
      logging.info('%s is there already; not saved again.', final)
      return
    temporary = final.parent / f'{final.name}.tmp-0'
    try:
      with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(
            os.path.abspath(temporary / 'state'), self._tree(state))
      if jax.process_index() == 0:
        (temporary / _RECORD).write_text(record.to_json())
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
    self._drop_old()

  def _tree(self, state: TrainState) -> dict[str, Any]:
    """What is written."""
    trainable = state.trainable
    if self.dtype is not None:
      trainable = {k: x.astype(self.dtype) for k, x in trainable.items()}
    return {
        'target': train_state_lib.nested(trainable),
        'state': {'step': state.step, 'optimizer': _named(state.opt_state)},
    }

  def _drop_old(self) -> None:
    """Removes all but the last `keep` saves and pinned ones."""
    if self._keep is None or jax.process_index() != 0:
      return
    for step in all_steps(self.directory)[:-self._keep]:
      folder = epath.Path(get_checkpoint_dir(self.directory, step))
      if not (folder / manifest.PINNED).exists():
        folder.rmtree()


def make_checkpointer(
    config: SaveCheckpointConfig, directory: str) -> Checkpointer:
  """The checkpointer that a configuration asks for."""
  make = config.checkpointer_cls or Checkpointer
  return make(directory, keep=config.keep, dtype=config.dtype)


def read_record(directory: str) -> RunRecord:
  """The record of one of our own saves.

  Raises:
    CheckpointError: if it is none of ours, or damaged.
  """
  try:
    manifest.verify(epath.Path(directory))
    return RunRecord.from_json((epath.Path(directory) / _RECORD).read_text())
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise CheckpointError(
        f'{directory} cannot be resumed from: {error}') from error


def restore_run(directory: str, template: TrainState) -> TrainState:
  """The state saved in one of our own saves.

  Args:
    directory: `checkpoint_<step>`.
    template: a state of this run or its template: gives names, shapes, dtypes
      and placement.

  Returns:
    The saved state, with the frozen part of `template`.

  Raises:
    CheckpointError: if the save does not hold what this run trains.
  """
  arrays = open_checkpoint(directory)
  targets = {name.removeprefix('target/') for name in arrays
             if name.startswith('target/')}
  if different := sorted(targets ^ template.trainable.keys()):
    raise CheckpointError(
        f'{directory} holds other trainable parameters than this run: '
        f'{different[0]} is only in one of them. Use another MODEL_DIR, or the '
        'PROMPT_REGEX that the run was started with.')

  def restored(name: str, like: jax.Array) -> jax.Array:
    array = arrays.get(name)
    if array is None or array.shape != like.shape:
      found = 'nothing' if array is None else list(array.shape)
      raise CheckpointError(
          f'{directory}: {name} is {found}, but this run has '
          f'{list(like.shape)}. Use another MODEL_DIR, or the configuration '
          'that the run was started with.')
    return array.put(like.sharding, like.dtype)

  named = _named(template.opt_state)
  opt_state = jax.tree.unflatten(
      jax.tree.structure(template.opt_state),
      [restored(f'state/optimizer/{k}', x) for k, x in named.items()])
  return template.replace(
      step=restored('state/step', template.step),
      trainable={path: restored(f'target/{path}', x)
                 for path, x in template.trainable.items()},
      opt_state=opt_state)


def _named(tree: Any) -> dict[str, Any]:
  """The leaves of an optimiser state by name, in tree order."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
      jax.tree_util.keystr(path, simple=True, separator=':').replace('/', '|'):
      leaf
      for path, leaf in leaves
  }


def _barrier(name: str) -> None:
  """Waits for the other processes, if there are any."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
