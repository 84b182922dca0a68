"""Every file of a checkpoint x every damage: refused by name, or harmless.

Refused means: an error that names the damaged file, or the folder of the array
it belongs to. Harmless means: every name, shape, dtype and bit is as it was.
"""

import pathlib
import shutil

from flax import serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from t5x import checkpoints
from t5x import lazy_arrays
import tensorstore as ts

RNG = np.random.default_rng(0)
TARGET = {
    'layer_0': {'kernel': RNG.normal(size=(40, 6)).astype(np.float32)},
    'layer_1': {'kernel': RNG.normal(size=(40, 6)).astype(np.float32)},
    'scale': np.asarray(RNG.normal(size=7), ml_dtypes.bfloat16),
    'none': None,
}


def flip(content: bytes, bit: int) -> bytes:
  changed = bytearray(content)
  changed[bit // 8] ^= 1 << bit % 8
  return bytes(changed)


# A file's bytes -> changed bytes, or None to delete it.
DAMAGES = {
    'emptied': lambda content: b'',
    'half': lambda content: content[:len(content) // 2],
    'one byte less': lambda content: content[:-1],
    'five bytes less': lambda content: content[:-5],
    'eight bytes less': lambda content: content[:-8],
    'flip in the middle': lambda content: flip(content, 4 * len(content)),
    'first bit': lambda content: flip(content, 0),
    'last bit': lambda content: flip(content, 8 * len(content) - 1),
    'appended': lambda content: content + b'x',
    'doubled': lambda content: content + content,
    'deleted': lambda content: None,
}


def native(folder: pathlib.Path) -> None:
  """T5X's native layout, of which all but the step is in zarr."""
  specs = {}
  for path, value in jax.tree_util.tree_leaves_with_path(TARGET):
    key = '.'.join(['target', *(part.key for part in path)])
    dtype = 'bfloat16' if value.ndim == 1 else '<f4'
    metadata = {'shape': list(value.shape), 'compressor': {
        'id': 'gzip', 'level': 1}, 'chunks': [10, 6][:value.ndim]}
    ts.open({
        'driver': 'zarr', 'metadata': metadata | {'dtype': dtype},
        'kvstore': {'driver': 'file', 'path': f'{folder}/{key}/'},
    }, create=True).result().write(value).result()
    specs[key] = {
        'driver': 'zarr', 'dtype': value.dtype.name, 'metadata': metadata,
        'kvstore': {'driver': 'file', 'path': f'{key}/'}}
  target = jax.tree_util.tree_map_with_path(
      lambda path, _: specs['.'.join(
          ['target', *(part.key for part in path)])], TARGET)
  (folder / 'checkpoint').write_bytes(serialization.msgpack_serialize({
      'version': 3, 'optimizer': {
          'target': target, 'state': {'step': np.int32(5)}}}))


def orbax(folder: pathlib.Path, **options) -> None:
  """T5X's layout at head."""
  ocp.PyTreeCheckpointer(**options).save(folder / 'state', {
      'target': jax.tree.map(jnp.asarray, TARGET),
      'state': {'step': np.int32(5)}})


def ours(folder: pathlib.Path) -> None:
  """What `save_t5x_checkpoint` writes, with its manifest."""
  names = {'/'.join(['target', *(part.key for part in path)]): value
           for path, value in jax.tree_util.tree_leaves_with_path(TARGET)}
  slot = {'state/param_states/scale/v_row': np.ones((1,), np.float32)}
  checkpoints.save_t5x_checkpoint(str(folder.parent), {
      name: lazy_arrays.of_array(name, value) for name, value in (
          names | slot | {'state/step': np.int32(5)}).items()},
      save_dtype=None)


def orbax_folders(folder: pathlib.Path) -> None:
  orbax(folder, use_ocdbt=False)


LAYOUTS = {'native': native, 'ours': ours, 'orbax': orbax,
           'orbax folders': orbax_folders}


@pytest.fixture(scope='module', params=LAYOUTS)
def checkpoint(request, tmp_path_factory):
  """A whole checkpoint of step 5, and its values."""
  folder = tmp_path_factory.mktemp('whole') / 'checkpoint_5'
  LAYOUTS[request.param](folder)
  return request.param, folder, values_of(folder)


def values_of(folder: pathlib.Path):
  """Everything that can be read, to the bit."""
  arrays = checkpoints.open_checkpoint(str(folder))
  return {name: (array.shape, str(array.dtype), array.get().tobytes())
          for name, array in arrays.items()}


def outcome(folder: pathlib.Path, file: pathlib.Path, wanted) -> str:
  """What becomes of a checkpoint whose one file is damaged."""
  try:
    found = values_of(folder)
  except checkpoints.CheckpointError as error:
    # A chunk inside OCDBT is named by the array it belongs to.
    named = (file.name, file.parent.name, 'target', 'state')
    return 'refused' if any(n in str(error) for n in named) else str(error)
  return 'same' if found == wanted else 'SILENT'


def is_of_values(layout: str, file: pathlib.Path) -> bool:
  """Whether flipped bits of a file cannot be found without a manifest.

  Orbax's zstd keeps no sum over values, nor does OCDBT.
  """
  return 'orbax' in layout and (
      file.parent.name == 'd' or file.parent.name.startswith(
          ('target.', 'state.')) and not file.name.startswith('.'))


@pytest.mark.parametrize('damage', DAMAGES)
def test_no_damage_is_loaded_silently(checkpoint, damage, tmp_path):
  layout, whole, wanted = checkpoint
  files = [p for p in sorted(whole.rglob('*')) if p.is_file()]
  outcomes = {}
  for file in files:
    if damage in ('flip in the middle', 'first bit', 'last bit') and (
        is_of_values(layout, file)):
      continue
    copy = tmp_path / 'checkpoint_5'
    shutil.copytree(whole, copy)
    damaged = copy / file.relative_to(whole)
    content = DAMAGES[damage](damaged.read_bytes())
    if content is None:
      damaged.unlink()
    else:
      damaged.write_bytes(content)
    outcomes[str(file.relative_to(whole))] = outcome(copy, damaged, wanted)
    shutil.rmtree(copy)
  assert set(outcomes.values()) <= {'refused', 'same'}, outcomes
  assert 'refused' in outcomes.values()
  if layout == 'ours' and damage not in ('deleted',):
    assert set(outcomes.values()) == {'refused'}, outcomes


# Small files bit by bit: the only ones in which a single bit may lead to
# another name, shape or dtype.
@pytest.mark.slow  # Thousands of checkpoints.
@pytest.mark.parametrize('name', [
    'checkpoint', 'target.layer_0.kernel/.zarray', 'target.scale/0',
    'target.layer_0.kernel/3.0'])
def test_no_bit_of_a_native_checkpoint_flips_unnoticed(tmp_path, name):
  folder = tmp_path / 'checkpoint_5'
  native(folder)
  wanted = values_of(folder)
  file = folder / name
  whole = file.read_bytes()
  outcomes = {}
  for bit in range(8 * len(whole)):
    file.write_bytes(flip(whole, bit))
    outcomes[bit] = outcome(folder, file, wanted)
  assert not {bit for bit, found in outcomes.items()
              if found not in ('refused', 'same')}
  refused = sum(found == 'refused' for found in outcomes.values())
  assert refused > len(outcomes) / 2


@pytest.mark.slow  # Thousands of checkpoints.
@pytest.mark.parametrize('name', ['_METADATA', 'target.scale/.zarray'])
def test_no_bit_of_orbax_metadata_flips_unnoticed(tmp_path, name):
  folder = tmp_path / 'checkpoint_5'
  orbax(folder, use_ocdbt=False)
  wanted = values_of(folder)
  file = folder / 'state' / name
  whole = file.read_bytes()
  silent = {}
  for bit in range(8 * len(whole)):
    file.write_bytes(flip(whole, bit))
    found = outcome(folder, file, wanted)
    if found not in ('refused', 'same'):
      silent[bit] = found, whole[max(0, bit // 8 - 20):bit // 8 + 1]
  assert not silent
