"""T5X's native layout, made here from msgpack and tensorstore alone."""

import dataclasses
import pathlib

from flax import serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from t5x import checkpoint_importer
from t5x import checkpoints
from t5x import lazy_arrays
import tensorstore as ts

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
LIKE = {'shape': [3, 4], 'chunks': [2, 4]}


def write_zarr(folder, values, chunks, dtype='<f4'):
  ts.open({
      'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{folder}/'},
      'metadata': {'shape': list(values.shape), 'chunks': chunks,
                   'dtype': dtype, 'compressor': {'id': 'gzip', 'level': 1}},
  }, create=True).result().write(values).result()


def native(folder: pathlib.Path, leaf, version=3) -> str:
  """A checkpoint of one zarr array, declared as `leaf`, and a step."""
  write_zarr(folder / 'target.a.b', VALUES, [2, 4])
  state = {'target': {'a': {'b': leaf, 'none': None, 'inline': np.ones(2)}},
           'state': {'step': np.int32(5),
                     'param_states': {'a': {'b': None}}},
           'flax_mutables': {}}
  tree = {'version': version, 'optimizer': state} if version else state
  (folder / 'checkpoint').write_bytes(serialization.msgpack_serialize(tree))
  return str(folder)


def spec(**changes):
  return {'driver': 'zarr', 'dtype': 'float32',
          'kvstore': {'driver': 'file', 'path': 'target.a.b/'},
          'metadata': LIKE} | changes


def without(leaf, key):
  return {k: v for k, v in leaf.items() if k != key}


GZIP = {'id': 'gzip', 'level': 1}
VARIANTS = {
    'file': spec(),
    'no slash': spec(kvstore={'driver': 'file', 'path': 'target.a.b'}),
    'gfile': spec(kvstore={'driver': 'gfile', 'path': 'target.a.b'}),
    'gcs': spec(kvstore={'driver': 'gcs', 'bucket': 't5x-dummy-bucket',
                         'path': 'target.a.b/'}),
    'path on top': spec(path='target.a.b', kvstore={'driver': 'gfile'}),
    'path and slash on top': spec(path='target.a.b/',
                                  kvstore={'driver': 'file'}),
    'dtype below': without(spec(metadata=LIKE | {'dtype': '<f4'}), 'dtype'),
    'dtype twice': spec(metadata=LIKE | {'dtype': '<f4'}),
    'compressor': spec(metadata=LIKE | {'compressor': GZIP}),
    'transform': spec(transform={'input_rank': 2}),
}


@pytest.mark.parametrize('leaf', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('version', [0, 2, 3])
def test_native_variants_are_read(tmp_path, leaf, version):
  arrays = checkpoint_importer.read_native(native(tmp_path, leaf, version))
  assert sorted(arrays) == ['state/step', 'target/a/b', 'target/a/inline']
  np.testing.assert_array_equal(arrays['target/a/b'].get(), VALUES)
  np.testing.assert_array_equal(
      arrays['target/a/b'].read_slice((slice(1, 3), slice(0, 2))),
      [[4, 5], [8, 9]])
  assert arrays['state/step'].get() == 5
  np.testing.assert_array_equal(arrays['target/a/inline'].get(), np.ones(2))
  assert arrays['target/a/b'].nbytes == 48


@pytest.mark.parametrize('version,stored', [(2, '<u2'), (3, 'bfloat16')])
def test_bfloat16_of_both_versions(tmp_path, version, stored):
  numbers = np.array([[1.5, -2.0, 3e30], [0.0, 7e-3, 255.0]],
                     ml_dtypes.bfloat16)
  folder = native(tmp_path, {
      'driver': 'zarr', 'dtype': 'uint16' if version == 2 else 'bfloat16',
      'kvstore': {'driver': 'file', 'path': 'target.a.b/'},
      'metadata': {'shape': [2, 3]}}, version)
  for file in (tmp_path / 'target.a.b').iterdir():
    file.unlink()
  write_zarr(tmp_path / 'target.a.b',
             numbers.view(np.uint16) if version == 2 else numbers, [2, 2],
             stored)
  array = checkpoint_importer.read_native(folder)['target/a/b']
  assert array.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(array.get(), numbers)
  np.testing.assert_array_equal(
      array.read_slice((slice(0, 2), slice(1, 3))), numbers[:, 1:])


def test_a_version_that_has_no_uint16_refuses_it_by_name(tmp_path):
  with pytest.raises(checkpoints.CheckpointError, match='target/a/b.*uint16'):
    checkpoint_importer.read_native(native(tmp_path, spec(dtype='uint16')))


@pytest.mark.parametrize('version', [1, 4, '3'])
def test_other_versions_are_refused_by_name(tmp_path, version):
  with pytest.raises(
      checkpoints.CheckpointError, match=f'checkpoint has version {version}'):
    checkpoint_importer.read_native(native(tmp_path, spec(), version))


# Every slice of an array whose chunks do not divide it, against numpy.
@pytest.mark.parametrize('shape,chunks', [
    ((), ()), ((5,), (2,)), ((5, 3), (2, 3)), ((4, 3, 5), (3, 2, 2))])
def test_any_slice_is_that_slice(tmp_path, shape, chunks):
  rng = np.random.default_rng(0)
  values = rng.normal(size=shape).astype(np.float32)
  native(tmp_path, without(spec(
      metadata={'shape': list(shape), 'dtype': '<f4'}), 'dtype'))
  for file in (tmp_path / 'target.a.b').iterdir():
    file.unlink()
  write_zarr(tmp_path / 'target.a.b', values, list(chunks))
  array = checkpoint_importer.read_native(str(tmp_path))['target/a/b']
  np.testing.assert_array_equal(array.get(), values)
  for _ in range(40):
    index = tuple(slice(*sorted(rng.integers(0, size + 1, 2)))
                  for size in shape)
    np.testing.assert_array_equal(array.read_slice(index), values[index])


@pytest.mark.parametrize('leaf', [
    spec(metadata=[1]), spec(kvstore='file:///etc/'), spec(dtype='float33'),
    spec(metadata={'shape': 3}), {'driver': 'zarr'},
    spec(metadata={'shape': [-3, 4]}), spec(metadata={'shape': ['3', 4]}),
    spec(metadata=LIKE | {'dtype': '<f8'})])
def test_native_specs_that_say_nonsense_are_refused(tmp_path, leaf):
  with pytest.raises(checkpoint_importer.CheckpointError, match='target'):
    checkpoint_importer.read_native(native(tmp_path, leaf))['target/a/b'].get()


@pytest.mark.parametrize('tree', [
    {'version': 3, 'optimizer': 5}, {'version': 3},
    {'version': 3, 'optimizer': {'state': {}}}, {'weights': {}}, [1], 5])
def test_a_tree_that_is_no_state_is_refused(tmp_path, tree):
  (tmp_path / 'checkpoint').write_bytes(serialization.msgpack_serialize(tree))
  with pytest.raises(checkpoint_importer.CheckpointError, match='damaged'):
    checkpoint_importer.read_native(str(tmp_path))


@pytest.mark.parametrize('leaf,match', [
    (spec(kvstore={'driver': 'file', 'path': '../secret'}), 'secret'),
    (spec(kvstore={'driver': 'file', 'path': '/etc'}), '/etc'),
    (spec(driver='n5'), 'n5'),
    (spec(metadata={'shape': [3, 5]}), r'\[3, 4\].*\[3, 5\]'),
    (spec(dtype='float64'), 'float32.*float64'),
    (spec(kvstore={'driver': 'file', 'path': 'target.gone'}), 'target.gone'),
    ('a word', 'target.a.b is not named'),
    (7, 'target.a.b is not named'),
])
def test_hostile_or_damaged_native_checkpoints_are_refused(
    tmp_path, leaf, match):
  with pytest.raises(checkpoints.CheckpointError, match=match):
    checkpoint_importer.read_native(
        native(tmp_path, leaf))['target/a/b'].get()


@pytest.mark.parametrize('leaf', ['a word', 7, False, [1.0]])
def test_a_leaf_that_is_no_array_is_refused(tmp_path, leaf):
  (tmp_path / 'checkpoint').write_bytes(serialization.msgpack_serialize(
      {'version': 3, 'optimizer': {'target': {'a': leaf}}}))
  with pytest.raises(checkpoints.CheckpointError, match='target/a is a'):
    checkpoint_importer.read_native(str(tmp_path))


@pytest.mark.parametrize('name', ['..', '.', '...'])
def test_names_do_not_leave_the_checkpoint(tmp_path, name):
  leaf = spec(kvstore={'driver': 'file', 'path': name})
  (tmp_path / 'checkpoint').write_bytes(serialization.msgpack_serialize(
      {'version': 3, 'optimizer': {'target': {}, name: leaf}}))
  with pytest.raises(checkpoints.CheckpointError, match='damaged'):
    checkpoint_importer.read_native(str(tmp_path))


# The last eight bytes are gzip's CRC-32 and length; tensorstore reads on
# without them.
@pytest.mark.parametrize('cut', range(1, 13))
def test_a_chunk_without_all_of_its_trailer_is_refused(tmp_path, cut):
  folder = native(tmp_path, spec())
  chunk = tmp_path / 'target.a.b' / '1.0'
  chunk.write_bytes(chunk.read_bytes()[:-cut])
  with pytest.raises(checkpoints.CheckpointError, match=r'target\.a\.b/1\.0'):
    checkpoint_importer.read_native(folder)['target/a/b'].get()


@pytest.mark.parametrize('old,new', [
    ('"<f4"', '">f4"'), ('"C"', '"F"'), ('"filters":null', '"filters":[]'),
    ('"zarr_format":2', '"zarr_format":3'), ('[2,4]', '[2]'), ('"gzip"', '7'),
    ('"gzip"', '"zlib"'), ('[3,4]', '[3,"4"]'), ('{', '[')])
def test_headers_that_mean_something_else_are_refused(tmp_path, old, new):
  folder = native(tmp_path, spec())
  header = tmp_path / 'target.a.b' / '.zarray'
  assert old in header.read_text()
  header.write_text(header.read_text().replace(old, new, 1))
  with pytest.raises(checkpoints.CheckpointError, match=r'target\.a\.b'):
    checkpoint_importer.read_native(folder)['target/a/b'].get()


def test_a_chunk_is_not_unpacked_beyond_its_size(tmp_path):
  folder = native(tmp_path, spec())
  header = (tmp_path / 'target.a.b' / '.zarray')
  header.write_text(header.read_text().replace('[2,4]', '[2,9999999999]'))
  with pytest.raises(checkpoints.CheckpointError, match='zarray'):
    checkpoint_importer.read_native(folder)['target/a/b'].get()


@pytest.mark.parametrize('content', [b'', b'\x80', b'no msgpack', b'\xc1' * 9])
def test_a_broken_index_is_refused(tmp_path, content):
  (tmp_path / 'checkpoint').write_bytes(content)
  with pytest.raises(checkpoints.CheckpointError, match='checkpoint'):
    checkpoint_importer.read_native(str(tmp_path))


def test_a_folder_without_an_index_is_refused(tmp_path):
  with pytest.raises(checkpoints.CheckpointError, match='no file named'):
    checkpoint_importer.read_native(str(tmp_path))


def test_load_t5x_checkpoint_nests_and_casts(tmp_path):
  folder = native(tmp_path, spec())
  tree = checkpoints.load_t5x_checkpoint(folder, restore_dtype=np.float16)
  assert tree['target']['a']['b'].dtype == np.float16
  assert tree['state']['step'] == 5 and tree['state']['step'].dtype == np.int32
  lazy = checkpoints.load_t5x_checkpoint(folder, lazy_parameters=True)
  assert isinstance(lazy['target']['a']['b'], checkpoints.LazyArray)
  same = checkpoints.load_t5x_checkpoint(str(tmp_path / 'checkpoint'))
  np.testing.assert_array_equal(same['target']['a']['b'], VALUES)


def test_load_t5x_checkpoint_applies_transformations(tmp_path):
  def rename(state, target_state, *, is_resuming=False):
    assert target_state == {} and not is_resuming
    return {'target': {'renamed': state['target']['a']['b']}}

  folder = native(tmp_path, spec())
  tree = checkpoints.load_t5x_checkpoint(
      folder, state_transformation_fns=[rename], restore_dtype='bfloat16')
  assert list(tree) == ['target'] and list(tree['target']) == ['renamed']
  assert tree['target']['renamed'].dtype == ml_dtypes.bfloat16
  tree = checkpoints.load_t5x_checkpoint(
      folder, state_transformation_fns=[rename], remap=False)
  assert 'a' in tree['target']


def test_put_reads_only_what_a_device_holds(tmp_path):
  arrays = checkpoint_importer.read_native(native(tmp_path, spec()))
  mesh = jax.make_mesh((2, 4), ('data', 'model'),
                       axis_types=(jax.sharding.AxisType.Auto,) * 2)
  sharding = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(None, 'model'))
  read = []
  array = arrays['target/a/b']
  spy = dataclasses.replace(array, read_slice=lambda index: (
      read.append(index), array.read_slice(index))[1])
  placed = spy.put(sharding, jnp.bfloat16)
  assert placed.dtype == jnp.bfloat16 and placed.sharding == sharding
  np.testing.assert_array_equal(np.asarray(placed, np.float32), array.get())
  # Each of four columns is on two devices; all is read, and read once.
  assert read == [(slice(0, 3), slice(0, 4))]


@pytest.mark.parametrize('spec_of_axes', [
    (None, None), ('data', None), (None, 'model'), ('model', 'data'),
    (('data', 'model'), None)])
@pytest.mark.parametrize('process', range(4))
def test_a_process_reads_what_encloses_its_parts(spec_of_axes, process):
  mesh = jax.make_mesh((2, 4), ('data', 'model'),
                       axis_types=(jax.sharding.AxisType.Auto,) * 2)
  sharding = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(*spec_of_axes))
  shape = (8, 16)
  indices = sharding.devices_indices_map(shape)
  of_process = [indices[d] for d in jax.devices()[2 * process:][:2]]
  box = lazy_arrays.enclosing(of_process, shape)
  held = np.zeros(shape, bool)
  for index in of_process:
    held[index] = True
  assert held[box].sum() == held.sum()
  assert held[box].any(0).all() and held[box].any(1).all()
  if spec_of_axes == (('data', 'model'), None):
    assert held[box].size == held.size // 4
