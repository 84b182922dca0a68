"""Writes T5X's native checkpoint layout, which published tools read.

    checkpoint_<step>/checkpoint           msgpack, version 3
    checkpoint_<step>/target.<name>/       zarr, chunks of at most 64 MiB
    checkpoint_<step>/manifest.json        SHA-256 of every file, ours

One chunk is in memory at a time, so that a checkpoint of any size can be
converted on a small machine.
"""

from collections.abc import Iterator, Mapping
import functools
import itertools
import logging
import math
import os
import time
from typing import Any

from etils import epath
from flax import serialization
import jax
import numpy as np
from t5x import lazy_arrays
from t5x import manifest
from t5x import optimizer_slots
from t5x import train_state as train_state_lib
import tensorstore as ts

CheckpointError = lazy_arrays.CheckpointError
LazyArray = lazy_arrays.LazyArray

VERSION = 3
_CHUNK_BYTES = 64 * 2**20


def of_state(state: train_state_lib.TrainState) -> dict[str, LazyArray]:
  """A state as the entries of a checkpoint.

  Args:
    state: of any run.

  Returns:
    From T5X's names to its arrays; Adafactor's slots among them, for what is
    trained.
  """
  entries = {f'target/{path}': value
             for path, value in (state.trainable | state.frozen).items()}
  entries['state/step'] = state.step
  for name, value in optimizer_slots.named(state.opt_state).items():
    entries[f'{optimizer_slots.SAVED_PREFIX}{name}'] = value
  return {name: lazy_arrays.of_array(name, value) for name, value in
          optimizer_slots.with_t5x_names(entries).items()}


def save_t5x_checkpoint(
    directory: str,
    arrays: Mapping[str, LazyArray],
    *,
    save_dtype: Any = 'float32',
) -> str:
  """Writes a checkpoint that T5X and the tools around it read.

  Args:
    directory: where `checkpoint_<step>` is written.
    arrays: by flat name: `state/step`, `target/...` and, where the optimiser's
      state is wanted, `state/param_states/...`; see `of_state` and
      `checkpoints.open_checkpoint`.
    save_dtype: of the parameters; None keeps theirs. The optimiser's state is
      never converted.

  Returns:
    The folder. One that is there already is left as it is.

  Raises:
    CheckpointError: if there is nothing to write, or it could not be written;
      nothing half-written is left then.
  """
  if jax.process_count() > 1:
    raise CheckpointError(
        'save_t5x_checkpoint runs in one process; convert the saves of several '
        'with python -m t5x.scripts.convert_checkpoint.')
  step = _step_of(arrays)
  final = epath.Path(directory) / f'checkpoint_{step}'
  if final.exists():
    logging.warning('%s is there already; not written again.', final)
    return os.fspath(final)
  temporary = final.parent / f'{final.name}.tmp-{int(time.time())}'
  temporary.rmtree(missing_ok=True)
  try:
    temporary.mkdir(parents=True)
    _write(temporary, {
        name: array.astype(save_dtype)
        if name.startswith('target/') and save_dtype is not None else array
        for name, array in arrays.items()}, step)
    manifest.write(temporary)
    temporary.rename(final)
  except BaseException as error:
    temporary.rmtree(missing_ok=True)
    if not isinstance(error, OSError | ValueError):
      raise
    raise CheckpointError(
        f'{final} could not be written ({error}). See that the disk has space '
        'and that the folder can be written to.') from error
  return os.fspath(final)


def _step_of(arrays: Mapping[str, LazyArray]) -> int:
  """The step of what is to be written."""
  step = arrays.get('state/step')
  if step is None or step.shape or not any(
      name.startswith('target/') for name in arrays):
    raise CheckpointError(
        'There is nothing to write: a checkpoint has a number state/step and '
        'parameters under target/.')
  return int(step.get())


def _write(
    folder: epath.Path, arrays: Mapping[str, LazyArray], step: int) -> None:
  """Writes the arrays and then the file that names them."""
  leaves: dict[str, Any] = {'state/step': np.int32(step)}
  for name, array in sorted(arrays.items()):
    if name == 'state/step':
      continue
    beside = name.startswith('target/') or _is_like_its_parameter(name, arrays)
    leaves[name] = _write_zarr(folder, name, array) if beside else array.get()
  tree = train_state_lib.nested(leaves | _absent_slots(arrays))
  (folder / 'checkpoint').write_bytes(serialization.msgpack_serialize(
      {'version': VERSION, 'optimizer': tree}))


def _is_like_its_parameter(
    name: str, arrays: Mapping[str, LazyArray]) -> bool:
  """Whether a slot is as large as its parameter, so that T5X shards it."""
  path, _, _ = name.removeprefix('state/param_states/').rpartition('/')
  parameter = arrays.get(f'target/{path}')
  return parameter is not None and parameter.shape == arrays[name].shape


def _absent_slots(arrays: Mapping[str, LazyArray]) -> dict[str, None]:
  """None for every parameter that is not trained, where T5X writes it."""
  trained = {name.removeprefix('state/param_states/').rpartition('/')[0]
             for name in arrays if name.startswith('state/param_states/')}
  paths = {name.removeprefix('target/') for name in arrays
           if name.startswith('target/')}
  return {f'state/param_states/{path}': None
          for path in paths - trained if trained}


def _write_zarr(
    folder: epath.Path, name: str, array: LazyArray) -> dict[str, Any]:
  """Writes one array, chunk by chunk.

  Returns:
    The spec that stands for it in the msgpack file.
  """
  key = name.replace('/', '.')
  chunks = chunk_shape(array.shape, array.dtype.itemsize)
  spec = {
      'driver': 'zarr',
      'dtype': ts.dtype(array.dtype).name,
      'kvstore': {'driver': 'file', 'path': f'{key}/'},
      'metadata': {'chunks': list(chunks), 'shape': list(array.shape),
                   'compressor': {'id': 'gzip', 'level': 1}},
  }
  store = lazy_arrays.open_store(os.fspath(folder)) / f'{key}/'
  out = ts.open(spec | {'kvstore': store.spec().to_json()},
                create=True, open=False).result()
  for region in _regions(array.shape, chunks):
    out[region].write(np.asarray(array.read_slice(region))).result()
  return spec


def _regions(
    shape: tuple[int, ...], chunks: tuple[int, ...]
) -> Iterator[tuple[slice, ...]]:
  """The part of an array that each of its chunks holds."""
  starts = [range(0, size, chunk)
            for size, chunk in zip(shape, chunks, strict=True)]
  for corner in itertools.product(*starts):
    yield tuple(slice(start, min(start + chunk, size)) for start, chunk, size
                in zip(corner, chunks, shape, strict=True))


@functools.cache
def chunk_shape(
    shape: tuple[int, ...], itemsize: int, limit: int = _CHUNK_BYTES
) -> tuple[int, ...]:
  """T5X's shape of a chunk.

  The longest axis shrinks to its next smaller divisor until a chunk fits.

  Args:
    shape: of the array.
    itemsize: bytes of an element.
    limit: bytes of a chunk.

  Returns:
    The shape of a chunk, which divides that of the array.
  """
  chunk = list(shape)
  while math.prod(chunk) * itemsize > limit:
    axis = chunk.index(max(chunk))
    chunk[axis] = next(size for size in range(chunk[axis] - 1, 0, -1)
                       if shape[axis] % size == 0)
  return tuple(chunk)
