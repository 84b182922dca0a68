"""T5X's Orbax layouts, made here by Orbax, msgpack and tensorstore alone."""

import pathlib

from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from t5x import checkpoint_utils
from t5x import checkpoints
import tensorstore as ts

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(48, 6)).astype(np.float32)
SCALE = np.asarray(RNG.normal(size=6), jnp.bfloat16)
V = RNG.normal(size=(1,)).astype(np.float32)
FLAT = {'target/mlp/wi_0/kernel': KERNEL, 'target/norm/scale': SCALE,
        'state/param_states/mlp/wi_0/kernel/v': V,
        'state/step': np.int32(7)}
# What T5X saves: a parameter that no optimiser touches has no slots.
TREE = {
    'target': {'mlp': {'wi_0': {'kernel': KERNEL}}, 'norm': {'scale': SCALE}},
    'state': {'step': np.int32(7), 'param_states': {
        'mlp': {'wi_0': {'kernel': {'v': V}}}, 'norm': {'scale': None}}},
    'flax_mutables': {},
}


def head(folder: pathlib.Path, **options) -> None:
  """As T5X at head: `checkpoint_<step>/state/_METADATA`."""
  ocp.PyTreeCheckpointer(**options).save(
      folder / 'state', jax.tree.map(jnp.asarray, TREE))


def of_2023(folder: pathlib.Path, root: str = '') -> None:
  """As Orbax in 2023: `checkpoint_<step>/state/checkpoint` and zarr."""
  flat = {f'{root}{name}'.replace('/', '.'): np.asarray(value)
          for name, value in FLAT.items()}
  for key, value in flat.items():
    ts.open({
        'driver': 'zarr', 'kvstore': {
            'driver': 'file', 'path': f'{folder}/state/{key}/'},
        'metadata': {
            'shape': list(value.shape), 'dtype': (
                'bfloat16' if key.endswith('scale') else value.dtype.str),
            'chunks': [min(size, 10) for size in value.shape],
            'compressor': {'id': 'gzip', 'level': 1}},
    }, create=True).result().write(value).result()

  def placeholder(path, leaf):
    if leaf is None:
      return None
    names = [*filter(None, [root.strip('/')]), *(part.key for part in path)]
    return 'PLACEHOLDER://' + '.'.join(names)

  tree = jax.tree_util.tree_map_with_path(
      placeholder, TREE, is_leaf=lambda x: x is None)
  content = {root.strip('/'): tree} if root else tree
  (folder / 'state' / 'checkpoint').write_bytes(
      serialization.msgpack_serialize(content | {'params_axes': None}))


LAYOUTS = {
    'ocdbt': head,
    'folders': lambda folder: head(folder, use_ocdbt=False),
    'zarr3': lambda folder: head(folder, use_zarr3=True),
    'zarr3 folders': lambda folder: head(
        folder, use_zarr3=True, use_ocdbt=False),
    '2023': of_2023,
    '2023, under _optimizer': lambda folder: of_2023(folder, '_optimizer/'),
}


@pytest.mark.parametrize('make', LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_orbax_is_read(tmp_path, make):
  folder = tmp_path / 'checkpoint_7'
  make(folder)
  assert checkpoint_utils.detect_checkpoint_type(folder) == (
      checkpoint_utils.CheckpointTypes.ORBAX)
  assert checkpoints.find_checkpoint(str(folder)) == str(folder)
  arrays = checkpoints.open_checkpoint(
      checkpoints.find_checkpoint(str(tmp_path)))
  assert arrays.keys() == FLAT.keys()
  for name, value in FLAT.items():
    assert arrays[name].dtype == value.dtype
    assert arrays[name].shape == value.shape
    np.testing.assert_array_equal(arrays[name].get(), value)
  np.testing.assert_array_equal(
      arrays['target/mlp/wi_0/kernel'].read_slice(
          (slice(3, 31), slice(2, 5))), KERNEL[3:31, 2:5])


@pytest.mark.parametrize('make', LAYOUTS.values(), ids=LAYOUTS)
def test_load_t5x_checkpoint_reads_orbax(tmp_path, make):
  make(tmp_path / 'checkpoint_7')
  tree = checkpoints.load_t5x_checkpoint(
      str(tmp_path), step=7, restore_dtype='float32')
  assert tree['target']['norm']['scale'].dtype == np.float32
  np.testing.assert_array_equal(
      tree['target']['mlp']['wi_0']['kernel'], KERNEL)
  assert tree['state']['param_states'].keys() == {'mlp'}


def test_only_what_is_asked_for_is_read(tmp_path):
  of_2023(tmp_path / 'checkpoint_7')
  data = tmp_path / 'checkpoint_7/state/target.mlp.wi_0.kernel'
  array = checkpoints.open_checkpoint(
      str(tmp_path / 'checkpoint_7'))['target/mlp/wi_0/kernel']
  (data / '4.0').write_bytes(b'not what it was')
  np.testing.assert_array_equal(
      array.read_slice((slice(0, 40), slice(0, 6))), KERNEL[:40])
  with pytest.raises(checkpoints.CheckpointError, match=r'kernel/4\.0'):
    array.get()


def test_a_placeholder_of_another_name_is_refused(tmp_path):
  of_2023(tmp_path)
  (tmp_path / 'state' / 'checkpoint').write_bytes(
      serialization.msgpack_serialize({'target': {
          'a': 'PLACEHOLDER://target.norm.scale'}}))
  with pytest.raises(checkpoints.CheckpointError, match='target/a is kept as'):
    checkpoints.open_checkpoint(str(tmp_path))


def test_an_array_that_the_metadata_forgets_is_missed(tmp_path):
  head(tmp_path)
  metadata = tmp_path / 'state' / '_METADATA'
  text = metadata.read_text()
  metadata.write_text(text.replace("('target', 'norm', 'scale')",
                                   "('target', 'norm', 'scble')"))
  with pytest.raises(checkpoints.CheckpointError, match='not the same name'):
    checkpoints.open_checkpoint(str(tmp_path))
  metadata.write_text(text.replace('scale', 'scble'))
  with pytest.raises(checkpoints.CheckpointError, match='holds no header'):
    checkpoints.open_checkpoint(str(tmp_path))


def test_a_shape_that_its_parts_do_not_make_is_refused(tmp_path):
  head(tmp_path, use_ocdbt=False)
  header = tmp_path / 'state' / 'target.mlp.wi_0.kernel' / '.zarray'
  header.write_text(header.read_text().replace('[48,6]', '[40,6]', 1))
  header.write_text(header.read_text().replace(
      '"shape":[48,6]', '"shape":[40,6]'))
  with pytest.raises(checkpoints.CheckpointError, match=r'parts of \[48, 6\]'):
    checkpoints.open_checkpoint(str(tmp_path))


def test_kinds_of_checkpoints(tmp_path):
  types = checkpoint_utils.CheckpointTypes
  with pytest.raises(checkpoints.CheckpointError, match='is no checkpoint'):
    checkpoint_utils.detect_checkpoint_type(tmp_path)
  index = tmp_path / 'checkpoint'
  index.write_bytes(b'model_checkpoint_path: "model.ckpt-5"')
  assert checkpoint_utils.detect_checkpoint_type(index) == types.T5X_TF
  with pytest.raises(checkpoints.CheckpointError, match='TensorFlow'):
    checkpoints.open_checkpoint(str(tmp_path))
  index.write_bytes(b'\x82')
  assert checkpoint_utils.detect_checkpoint_type(tmp_path) == types.T5X
  with pytest.raises(checkpoints.CheckpointError, match='expected ORBAX'):
    checkpoint_utils.detect_checkpoint_type(tmp_path, types.ORBAX)


def test_pins(tmp_path):
  folder = tmp_path / 'checkpoint_1'
  with pytest.raises(checkpoints.CheckpointError, match='no such folder'):
    checkpoint_utils.pin_checkpoint(folder)
  folder.mkdir()
  checkpoint_utils.pin_checkpoint(folder, 'for the paper')
  assert checkpoint_utils.is_pinned_checkpoint(folder)
  assert (folder / 'PINNED').read_text() == 'for the paper'
  checkpoint_utils.remove_checkpoint_dir(folder)
  assert folder.exists()
  checkpoint_utils.unpin_checkpoint(folder)
  assert not checkpoint_utils.is_pinned_checkpoint(folder)
  checkpoint_utils.remove_checkpoint_dir(folder)
  assert not list(tmp_path.iterdir())


def test_a_folder_that_is_of_another_step_is_refused(tmp_path):
  of_2023(tmp_path / 'checkpoint_8')
  with pytest.raises(checkpoints.CheckpointError, match='is of step 7'):
    checkpoints.open_checkpoint(str(tmp_path / 'checkpoint_8'))
