import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x import fingerprint
from t5x import partitioning

DTYPES = pytest.mark.parametrize(
    'dtype', [jnp.bfloat16, jnp.float32, jnp.int32, jnp.int8],
    ids=lambda dtype: dtype.__name__)
SHAPES = {'matrix': (4, 5), 'vector': (7,), 'cube': (2, 3, 2), 'scalar': ()}


def arrays(dtype=jnp.float32):
  """A few arrays without two equal elements in any of them."""
  rng = np.random.default_rng(0)
  return {name: rng.permutation(int(np.prod(shape))).reshape(shape).astype(
      dtype) for name, shape in SHAPES.items()}


def bits(array):
  """The same memory as unsigned integers."""
  return array.reshape(-1).view(f'u{array.dtype.itemsize}')


# One bit of one element of one array at a time: all names differ.
@DTYPES
@pytest.mark.parametrize('bit', ['lowest', 'highest'])
def test_every_element_counts(dtype, bit):
  names = {fingerprint.fingerprint(arrays(dtype))}
  count = 1
  for name, shape in SHAPES.items():
    for i in range(int(np.prod(shape))):
      changed = arrays(dtype)
      memory = bits(changed[name])
      memory[i] ^= memory.dtype.type(
          1 if bit == 'lowest' else 1 << (8 * memory.dtype.itemsize - 1))
      names.add(fingerprint.fingerprint(changed))
      count += 1
  assert len(names) == count == 1 + 20 + 7 + 12 + 1


# A checksum that forgets places, or knows them only by row, fails here.
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('name', ['matrix', 'vector', 'cube'])
def test_every_exchange_of_two_elements_counts(name, dtype):
  names = {fingerprint.fingerprint(arrays(dtype))}
  size = int(np.prod(SHAPES[name]))
  for i, j in itertools.combinations(range(size), 2):
    changed = arrays(dtype)
    memory = bits(changed[name])
    memory[[i, j]] = memory[[j, i]]
    names.add(fingerprint.fingerprint(changed))
  assert len(names) == 1 + size * (size - 1) // 2


def test_a_lonely_one_is_found_at_every_place():
  eye = np.eye(64, dtype=np.int32).reshape(64, 8, 8)
  assert len({fingerprint.fingerprint({'x': x}) for x in eye}) == 64


@pytest.mark.parametrize('change', [
    lambda x: x | {'other': x['matrix']},
    lambda x: {k: v for k, v in x.items() if k != 'scalar'},
    lambda x: {('vectors' if k == 'vector' else k): v for k, v in x.items()},
    lambda x: x | {'matrix': x['matrix'].reshape(5, 4)},
    lambda x: x | {'matrix': x['matrix'].reshape(20)},
    lambda x: x | {'matrix': x['matrix'].T},
    lambda x: x | {'scalar': x['scalar'].reshape(1)},
    lambda x: x | {'vector': x['vector'].view(np.int32)},
    lambda x: x | {'vector': x['vector'].astype(np.int32)},
    lambda x: x | {'scalar': -x['scalar']},
    lambda x: x | {'empty': np.zeros((0, 3), np.float32)},
], ids=['added', 'removed', 'renamed', 'reshaped', 'flattened', 'transposed',
        'scalar to vector', 'dtype, same bits', 'dtype, same values',
        'minus zero', 'empty'])
def test_what_is_not_a_value_counts_too(change):
  assert bits(arrays()['scalar']) == 0
  assert fingerprint.fingerprint(arrays()) != fingerprint.fingerprint(
      change(arrays()))


def test_values_exchanged_between_two_arrays_count():
  first, second = np.float32([[1, 2]]), np.float32([[3, 4]])
  assert fingerprint.fingerprint({'a': first, 'b': second}) != (
      fingerprint.fingerprint({'a': second, 'b': first}))


@DTYPES
def test_equal_values_have_equal_names(dtype):
  host = arrays(dtype)
  expected = fingerprint.fingerprint(host)
  backwards = dict(reversed(host.items()))
  assert fingerprint.fingerprint(backwards) == expected
  on_device = {name: jnp.asarray(x) for name, x in host.items()}
  assert fingerprint.fingerprint(on_device) == expected
  strided = {name: np.copy(x, order='F') for name, x in host.items()}
  assert fingerprint.fingerprint(strided) == expected


def test_nan_has_a_name_of_its_own():
  nan = {'x': np.float32([np.nan, 1.0])}
  assert fingerprint.fingerprint(nan) == fingerprint.fingerprint(dict(nan))
  assert fingerprint.fingerprint(nan) != fingerprint.fingerprint(
      {'x': np.float32([1.0, np.nan])})


# On one device, and cut in every way over eight.
@pytest.mark.parametrize('partitions,spec', [
    (1, ('data', None)), (1, (None, 'data')), (2, ('data', 'model')),
    (4, ('model', 'data')), (8, (None, 'model')), (2, (('data', 'model'),)),
    (4, ())])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.int32])
def test_the_sharding_does_not_matter(partitions, spec, dtype):
  whole = np.random.default_rng(1).normal(size=(16, 8)).astype(dtype)
  one = jax.device_put(whole, jax.devices()[0])
  eight = jax.device_put(whole, partitioning.NamedSharding(
      partitioning.make_mesh(partitions), partitioning.PartitionSpec(*spec)))
  assert len(eight.addressable_shards) == 8
  assert fingerprint.fingerprint({'x': eight}) == (
      fingerprint.fingerprint({'x': one}))


# Names are stored beside prompts: a new algorithm would orphan them all.
def test_a_stored_name_stays_valid():
  counting = jnp.arange(12, dtype=jnp.float32).reshape(3, 4)
  assert fingerprint.fingerprint({'w': counting}) == (
      '2278b2f8c3de4722e88c216b8409e6b3446dbe9ba6ffbfea4a8987b19ee59bd3')
