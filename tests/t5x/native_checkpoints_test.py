"""What we write in T5X's native layout, read by msgpack and tensorstore."""

import json
import math
import pathlib
import re

from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x import adafactor
from t5x import checkpoints
from t5x import lazy_arrays
from t5x import native_checkpoints
import tensorstore as ts

PROMPT = r'.*/prompt/.*'


def published_reader(folder: pathlib.Path) -> dict:
  """Reads a checkpoint as the published converters do.

  msgpack for the tree; a spec dictionary goes to tensorstore as it stands,
  with the folder before its path.
  """
  content = serialization.msgpack_restore((folder / 'checkpoint').read_bytes())
  assert content.keys() == {'version', 'optimizer'}
  assert content['version'] == 3

  def read(node):
    if not isinstance(node, dict):
      return node
    if node.get('driver') != 'zarr':
      return {key: read(value) for key, value in node.items()}
    assert node.keys() == {'driver', 'dtype', 'kvstore', 'metadata'}
    assert node['metadata'].keys() == {'chunks', 'compressor', 'shape'}
    path = node['kvstore']['path']
    assert path.endswith('/') and node['kvstore']['driver'] == 'file'
    spec = {'driver': 'zarr', 'dtype': node['dtype'],
            'metadata': {'shape': node['metadata']['shape']},
            'kvstore': {'driver': 'file', 'path': f'{folder}/{path}'}}
    return np.asarray(ts.open(spec, open=True).result().read().result())

  return read(content['optimizer'])


def arrays_of(**values):
  flat = {'state/step': np.int32(3)} | {
      name.replace('__', '/'): np.asarray(x) for name, x in values.items()}
  return {name: lazy_arrays.of_array(name, x) for name, x in flat.items()}


def test_a_published_reader_gets_every_value(tiny, tmp_path):
  model = tiny.model(definition=adafactor.Adafactor(min_dim_size_to_factor=8))
  trainer, state = tiny.start(model, first_step=11)
  state, _ = tiny.steps(trainer, state, 1)
  folder = pathlib.Path(checkpoints.save_t5x_checkpoint(
      str(tmp_path), native_checkpoints.of_state(state)))
  assert folder.name == 'checkpoint_12'
  read = published_reader(folder)
  assert read['state']['step'] == 12
  assert read['state']['step'].dtype == np.int32
  for path, value in state.trainable.items():
    found, slots = read['target'], read['state']['param_states']
    for key in path.split('/'):
      found, slots = found[key], slots[key]
    np.testing.assert_array_equal(found, value)
    assert slots.keys() == {'v_row', 'v_col', 'v', 'm'}
    assert slots['m'].shape == (1,)
    factored = value.ndim == 2 and min(value.shape) >= 8
    assert (slots['v'].shape == value.shape) != factored
    assert np.any(slots['v_row' if factored else 'v'] != 0), path


def test_what_is_not_trained_has_no_slots(tiny, tmp_path):
  _, state = tiny.start(tiny.model(PROMPT, prompt_length=3))
  folder = checkpoints.save_t5x_checkpoint(
      str(tmp_path), native_checkpoints.of_state(state))
  slots = published_reader(pathlib.Path(folder))['state']['param_states']
  assert slots['token_embedder'] == {'embedding': None}
  assert slots['encoder']['prompt']['prompt']['prompt'].keys() == {
      'v_row', 'v_col', 'v', 'm'}


def test_t5x_layout_byte_for_byte_facts(tmp_path):
  values = np.zeros((6, 4), np.float32)
  folder = pathlib.Path(checkpoints.save_t5x_checkpoint(
      str(tmp_path), arrays_of(target__a__b=values)))
  assert {p.name for p in folder.iterdir()} == {
      'checkpoint', 'target.a.b', 'manifest.json'}
  # Zeros are written too: a missing chunk is damage.
  assert {p.name for p in (folder / 'target.a.b').iterdir()} == {
      '.zarray', '0.0'}
  assert json.loads((folder / 'target.a.b' / '.zarray').read_text()) == {
      'chunks': [6, 4], 'compressor': {'id': 'gzip', 'level': 1},
      'dimension_separator': '.', 'dtype': '<f4', 'fill_value': None,
      'filters': None, 'order': 'C', 'shape': [6, 4], 'zarr_format': 2}
  assert serialization.msgpack_restore(
      (folder / 'checkpoint').read_bytes())['optimizer']['target'] == {
          'a': {'b': {
              'driver': 'zarr', 'dtype': 'float32',
              'kvstore': {'driver': 'file', 'path': 'target.a.b/'},
              'metadata': {'chunks': [6, 4], 'shape': [6, 4],
                           'compressor': {'id': 'gzip', 'level': 1}}}}}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', None])
def test_save_dtype_is_for_parameters_only(tmp_path, dtype):
  kernel = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
  slot = np.full((1,), 1 / 3, np.float32)
  folder = checkpoints.save_t5x_checkpoint(
      str(tmp_path), arrays_of(
          target__k=kernel, state__param_states__k__v=slot), save_dtype=dtype)
  read = published_reader(pathlib.Path(folder))
  assert read['target']['k'].dtype == jnp.dtype(dtype or 'float32')
  np.testing.assert_array_equal(
      read['target']['k'], kernel.astype(jnp.dtype(dtype or 'float32')))
  np.testing.assert_array_equal(read['state']['param_states']['k']['v'], slot)
  assert read['state']['param_states']['k']['v'].dtype == np.float32


@pytest.mark.parametrize('shape,itemsize,limit,chunks', [
    ((), 4, 64, ()), ((16,), 4, 64, (16,)), ((17,), 4, 64, (1,)),
    ((32, 4), 4, 64, (4, 4)), ((4, 32), 4, 64, (4, 4)),
    ((6, 10), 4, 64, (3, 5)), ((32128, 4096), 4, 2**26, (4016, 4096)),
    ((4096, 10240), 4, 2**26, (4096, 2560)),
    ((4096, 10240), 2, 2**26, (4096, 5120)),
])
def test_the_longest_axis_shrinks_until_a_chunk_fits(
    shape, itemsize, limit, chunks):
  found = native_checkpoints.chunk_shape(shape, itemsize, limit)
  assert found == chunks
  assert math.prod(found) * itemsize <= limit
  assert all(size % chunk == 0
             for size, chunk in zip(shape, found, strict=True))


def test_one_chunk_at_a_time_is_read(tmp_path):
  read = []

  def read_slice(index):
    rows, columns = (axis.stop - axis.start for axis in index)
    read.append(rows * columns * 4)
    return np.full((rows, columns), index[1].start, np.float32)

  arrays = arrays_of() | {'target/k': lazy_arrays.LazyArray(
      'target/k', (2, 3 * 2**22), np.dtype('float32'), read_slice)}
  folder = checkpoints.save_t5x_checkpoint(str(tmp_path), arrays)
  assert read == [48 * 2**20] * 2
  kept = checkpoints.open_checkpoint(folder)['target/k']
  np.testing.assert_array_equal(
      kept.read_slice((slice(1, 2), slice(6291455, 6291457))), [[0, 6291456]])


def test_a_checkpoint_that_is_there_is_left_alone(tmp_path):
  folder = checkpoints.save_t5x_checkpoint(
      str(tmp_path), arrays_of(target__k=np.ones(2)))
  assert folder == checkpoints.save_t5x_checkpoint(
      str(tmp_path), arrays_of(target__k=np.zeros(2)))
  np.testing.assert_array_equal(
      published_reader(pathlib.Path(folder))['target']['k'], np.ones(2))


def test_a_write_that_fails_leaves_nothing(tmp_path):
  def fail(index):
    raise checkpoints.CheckpointError('a chunk of the source is damaged')

  arrays = arrays_of(target__a=np.ones(2)) | {
      'target/b': lazy_arrays.LazyArray(
          'target/b', (2,), np.dtype('float32'), fail)}
  with pytest.raises(checkpoints.CheckpointError, match='a chunk of the sour'):
    checkpoints.save_t5x_checkpoint(str(tmp_path), arrays)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('arrays', [
    {}, arrays_of(), {'target/k': lazy_arrays.of_array('k', np.ones(2))}])
def test_nothing_is_not_written(tmp_path, arrays):
  with pytest.raises(checkpoints.CheckpointError, match='nothing to write'):
    checkpoints.save_t5x_checkpoint(str(tmp_path), arrays)


def test_our_own_reader_gets_every_bit_back(tiny, tmp_path):
  trainer, state = tiny.start(tiny.model(
      definition=adafactor.Adafactor(beta1=0.9)), partitions=2)
  state, _ = tiny.steps(trainer, state, 1)
  wanted = native_checkpoints.of_state(state)
  folder = checkpoints.save_t5x_checkpoint(str(tmp_path), wanted)
  read = checkpoints.open_checkpoint(folder)
  assert read.keys() == wanted.keys()
  assert any(re.fullmatch('.*/m', name) for name in read)
  for name, array in wanted.items():
    np.testing.assert_array_equal(read[name].get(), array.get(), name)
    assert read[name].dtype == array.dtype
  assert jax.tree.leaves(state.opt_state)
