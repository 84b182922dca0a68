import json
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors import numpy as reference
from t5x import lazy_arrays
from t5x import safetensors_files
from t5x import whole_writes

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64,
          np.int32, np.int16, np.int8, np.uint8, np.bool_]


def arrays_of(dtypes, seed=0):
  """An array of three axes in every dtype, and a number."""
  rng = np.random.default_rng(seed)
  made = {f'x.{np.dtype(d).name}': rng.integers(0, 2, (3, 4, 2)).astype(d)
          for d in dtypes}
  return made | {'number': np.array(7, np.float32)}


def assert_same(found, expected):
  assert set(found) == set(expected)
  for name, array in expected.items():
    value = found[name].get()
    assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    assert value.dtype == array.dtype and value.shape == array.shape
    np.testing.assert_array_equal(value, array)


def test_what_the_package_writes_is_read(tmp_path):
  arrays = arrays_of(DTYPES)
  reference.save_file(arrays, tmp_path / 'a.safetensors', {'format': 'pt'})
  assert_same(safetensors_files.read(tmp_path / 'a.safetensors'), arrays)


def test_what_is_written_is_read_by_the_package(tmp_path):
  arrays = arrays_of(DTYPES)
  arrays['transposed'] = np.arange(12, dtype=np.float32).reshape(3, 4).T
  arrays['strided'] = np.arange(12, dtype=np.float32)[::3]
  arrays['big'] = np.arange(3, dtype='>f4')
  path = tmp_path / 'a.safetensors'
  safetensors_files.write(path, {
      name: lazy_arrays.of_array(name, array) if name == 'strided' else array
      for name, array in arrays.items() if name != 'big'}, {'a': 'b'})
  found = reference.load_file(path)
  assert set(found) == set(arrays) - {'big'}
  for name in found:
    np.testing.assert_array_equal(found[name], arrays[name])
  with safetensors.safe_open(path, framework='np') as file:
    assert file.metadata() == {'a': 'b'}
  assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']


@pytest.mark.parametrize('index', [
    np.s_[1:3, :], np.s_[:, 2:5], np.s_[2:3, 1:2], np.s_[:, :], np.s_[0:0, :]])
def test_a_part_is_read_alone(tmp_path, index):
  x = np.arange(24, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(4, 6)
  safetensors_files.write(tmp_path / 'a', {'x': x})
  part = safetensors_files.read(tmp_path / 'a')['x'].read_slice(index)
  assert part.dtype == x.dtype
  np.testing.assert_array_equal(part, x[index])


def test_a_tensor_goes_onto_devices_in_parts(tmp_path):
  x = np.arange(64, dtype=np.float32).reshape(8, 8)
  safetensors_files.write(tmp_path / 'a', {'x': x})
  mesh = jax.make_mesh((4, 2), ('a', 'b'))
  sharding = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec('a', 'b'))
  placed = safetensors_files.read(tmp_path / 'a')['x'].put(sharding, 'float32')
  assert placed.sharding == sharding
  np.testing.assert_array_equal(placed, x)


def entry(dtype='F32', shape=(2,), offsets=(0, 8), **more):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets),
          **more}


def twice(first, second):
  return (f'{{"a": {json.dumps(first)}, "a": {json.dumps(second)}}}').encode()


# A header, how many bytes follow it, and what the error says.
HOSTILE = {
    'truncated': ({'a': entry()}, 7, 'not fully covered'),
    'trailing bytes': ({'a': entry()}, 9, 'not fully covered'),
    'overlap': ({'a': entry(), 'b': entry(offsets=(4, 12))}, 12, 'offset'),
    'same place': ({'a': entry(), 'b': entry()}, 8, 'offset'),
    'gap': ({'a': entry(), 'b': entry(offsets=(12, 20))}, 20, 'offset'),
    'backwards': ({'a': entry(offsets=(8, 0))}, 8, 'offset'),
    'misfit': ({'a': entry(shape=[3])}, 8, 'invalid shape'),
    'huge shape': ({'a': entry(shape=[2**40, 2**40])}, 8, 'overflow'),
    'huge claim': ({'a': entry(shape=[2**40], offsets=[0, 2**42])}, 8,
                   'not fully covered'),
    'no values': ({'a': entry(shape=[0, 2**62], offsets=[0, 0])}, 0, 'shape'),
    'negative size': ({'a': entry(shape=[-1, -2])}, 8, 'shape'),
    'size 2.0': ({'a': entry(shape=[2.0])}, 8, 'shape'),
    'size true': ({'a': entry(shape=[True, 2])}, 8, 'shape'),
    'rank': ({'a': entry(shape=[1] * 40 + [2])}, 8, 'shape'),
    'negative offset': ({'a': entry(offsets=[-8, 0])}, 8, 'integer'),
    'dtype': ({'a': entry('Q7')}, 8, "dtype 'Q7'"),
    'packed dtype': ({'a': entry('F4', [16])}, 8, "dtype 'F4'"),
    'dtype is a list': ({'a': entry(['F32'])}, 8, 'dtype'),
    'unknown key': ({'a': entry(code='import os')}, 8, 'code'),
    'missing key': ({'a': {'dtype': 'F32', 'shape': [2]}}, 8, 'data_offsets'),
    'entry is a list': ({'a': [1]}, 8, 'list'),
    'metadata': ({'__metadata__': {'a': 1}, 'a': entry()}, 8, 'string'),
    'twice': (twice(entry(), entry()), 8, "'a' stands there twice"),
    'twice, different': (twice(entry(), entry(shape=[1, 2])), 8, 'twice'),
    'no object': ([1], 8, 'list'),
    'no JSON': (b'{a', 8, 'JSON'),
    'no text': (b'\xff\xfe{}', 8, 'JSON'),
    'deep': (b'[' * 100_000, 8, 'recursion'),
}


def raw(path, header, count, length=None):
  """Writes a file as it is told to."""
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  length = len(header) if length is None else length
  path.write_bytes(struct.pack('<Q', length) + header + bytes(count))


@pytest.mark.parametrize('case', HOSTILE)
def test_a_hostile_file_is_refused_when_it_is_opened(tmp_path, case):
  header, count, says = HOSTILE[case]
  path = tmp_path / 'bad.safetensors'
  raw(path, header, count)
  with pytest.raises(lazy_arrays.CheckpointError, match=says) as error:
    safetensors_files.read(path)
  assert 'bad.safetensors' in str(error.value)


@pytest.mark.parametrize('length', [2**63, 2**40, 10, 0])
def test_a_lie_about_the_header_is_refused(tmp_path, length):
  header = json.dumps({'a': entry()}).encode()
  raw(tmp_path / 'a', header, 8, length)
  with pytest.raises(lazy_arrays.CheckpointError, match='Get it again'):
    safetensors_files.read(tmp_path / 'a')


@pytest.mark.parametrize('content', [b'', b'\x01', bytes(8), b'\x80\x04.'])
def test_what_is_no_such_file_is_refused(tmp_path, content):
  (tmp_path / 'a').write_bytes(content)
  with pytest.raises(lazy_arrays.CheckpointError):
    safetensors_files.read(tmp_path / 'a')
  with pytest.raises(lazy_arrays.CheckpointError, match='No such file'):
    safetensors_files.read(tmp_path / 'absent')


@pytest.mark.parametrize('dtype', [
    np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_when_read(
    tmp_path, dtype, value):
  x = np.ones((4, 3), np.float32)
  x[2, 1] = value
  reference.save_file({'x': x.astype(dtype)}, tmp_path / 'a')
  array = safetensors_files.read(tmp_path / 'a')['x']
  array.read_slice(np.s_[:2, :])
  with pytest.raises(lazy_arrays.CheckpointError, match='x holds a NaN'):
    array.get()


@pytest.fixture
def sharded(tmp_path):
  """A model in two shards: its folder, its index and its arrays."""
  arrays = arrays_of(DTYPES)
  names = sorted(arrays)
  places = {name: f'model-0000{1 + i % 2}-of-00002.safetensors'
            for i, name in enumerate(names)}
  for shard in set(places.values()):
    reference.save_file({n: arrays[n] for n in names if places[n] == shard},
                        tmp_path / shard)

  def write_index(weight_map):
    (tmp_path / safetensors_files.INDEX).write_text(json.dumps(
        {'metadata': {'total_size': 1}, 'weight_map': weight_map}))

  write_index(places)
  return tmp_path, places, arrays, write_index


def test_shards_are_one_model(sharded):
  folder, _, arrays, _ = sharded
  assert_same(safetensors_files.read_folder(folder), arrays)


def refused(folder, says):
  with pytest.raises(lazy_arrays.CheckpointError, match=says):
    safetensors_files.read_folder(folder)


@pytest.mark.parametrize('shard', [
    '../outside.safetensors', '/tmp/outside.safetensors', '..', 'a/b', ''])
def test_an_index_cannot_lead_out_of_the_folder(sharded, shard):
  folder, places, _, write_index = sharded
  reference.save_file({'number': np.zeros(1)},
                      folder.parent / 'outside.safetensors')
  write_index(places | {'number': shard})
  refused(folder, 'without a path')


@pytest.mark.parametrize('name', ['model-00001-of-00002.safetensors',
                                  safetensors_files.SINGLE,
                                  safetensors_files.INDEX])
def test_a_symlink_cannot_lead_out_of_the_folder(sharded, name, tmp_path):
  folder, *_ = sharded
  outside = folder.parent / f'{tmp_path.name}-outside'
  outside.write_bytes(b'{}')
  (folder / name).unlink(missing_ok=True)
  (folder / name).symlink_to(outside)
  refused(folder, 'not followed')


def test_index_and_shards_must_agree(sharded):
  folder, places, _, write_index = sharded
  one, two = sorted(set(places.values()))
  write_index(places | {'extra': one})
  refused(folder, f'{one} lacks extra')
  write_index({n: p for n, p in places.items() if n != 'number'})
  refused(folder, 'holds number, which .* places in nowhere')
  write_index(places | {'number': two if places['number'] == one else one})
  refused(folder, 'number')
  write_index(places | {'number': 'model-3.safetensors'})
  refused(folder, 'number|No such file')
  write_index(places | {'number': 'pytorch_model.bin'})
  refused(folder, r'only \.safetensors')


@pytest.mark.parametrize('content', [
    '{}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '[]', '{"weight_map'
    '": {"a": "x.safetensors", "a": "x.safetensors"}}', 'no'])
def test_a_broken_index_is_refused(tmp_path, content):
  (tmp_path / safetensors_files.INDEX).write_text(content)
  refused(tmp_path, 'index.json')


def test_a_folder_without_a_model_is_named(tmp_path):
  refused(tmp_path, 'neither')


def test_nothing_is_overwritten(tmp_path):
  (tmp_path / 'a').write_bytes(b'precious')
  with pytest.raises(whole_writes.ExistsError, match='already'):
    safetensors_files.write(tmp_path / 'a', {'x': np.zeros(2)})
  assert (tmp_path / 'a').read_bytes() == b'precious'


@pytest.mark.parametrize('array,says', [
    (np.zeros(2, np.complex64), 'complex64'),
    (lazy_arrays.LazyArray('x', (3,), np.dtype('f4'),
                           lambda index: np.zeros(2, np.float32)), 'declared'),
    (np.zeros((0, 2), np.float32), 'shape')])
def test_what_cannot_be_written_leaves_nothing(tmp_path, array, says):
  with pytest.raises(lazy_arrays.CheckpointError, match=says):
    safetensors_files.write(tmp_path / 'a', {'x': array})
  assert not list(tmp_path.iterdir())
