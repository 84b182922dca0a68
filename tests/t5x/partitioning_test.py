from flax import linen as nn
import jax
import numpy as np
import pytest
from t5x import partitioning

ALL = (1, 2, 4, 8)
PARTITIONS = pytest.mark.parametrize('partitions', ALL)


def partitioner(partitions=2, dims=(1, 1), additional=None):
  return partitioning.PjitPartitioner(
      partitions, logical_axis_rules=partitioning.standard_logical_axis_rules(
          *dims, additional))


def mesh_axes(sharding, ndim):
  """The mesh axis that cuts each array axis."""
  spec = tuple(sharding.spec)
  return spec + (None,) * (ndim - len(spec))


# T5X's rules by hand: (activation dims, parameter dims), logical, mesh axes.
@pytest.mark.parametrize('dims,axes,expected', [
    ((1, 1), ('batch', 'length', 'embed'), ('data', None, None)),
    ((2, 1), ('batch', 'length', 'embed'), ('data', None, 'model')),
    ((1, 2), ('batch', 'length', 'embed'), ('data', None, None)),
    ((2, 2), ('batch', 'length', 'embed'), ('data', None, 'model')),
    ((1, 1), ('embed', 'mlp'), (None, 'model')),
    ((2, 1), ('embed', 'mlp'), (None, 'model')),
    ((1, 2), ('embed', 'mlp'), ('data', 'model')),
    ((2, 2), ('embed', 'mlp'), ('data', 'model')),
    ((1, 1), ('embed',), (None,)),
    ((2, 1), ('embed',), ('model',)),
    ((1, 2), ('embed',), ('data',)),
    ((2, 2), ('embed',), ('model',)),
    ((1, 1), ('vocab', 'embed'), ('model', None)),
    ((1, 2), ('vocab', 'embed'), ('model', 'data')),
    ((1, 1), ('joined_kv', 'embed'), ('model', None)),
    ((1, 1), ('embed', 'heads', 'kv'), (None, 'model', None)),
    ((1, 1), ('batch', 'length', 'heads', 'kv'), ('data', None, 'model', None)),
    ((1, 1), ('heads', 'relpos_buckets'), ('model', None)),
    ((1, 1), ('layers', 'embed', 'mlp'), (None, None, 'model')),
    ((1, 1), ('stack', 'mlp_activations', 'abspos_buckets'), (None,) * 3),
    # Both want `model`: the rule that stands first gets it.
    ((1, 1), ('heads', 'mlp'), (None, 'model')),
    ((1, 1), ('joined_kv', 'vocab'), (None, 'model')),
    # Axes without a name, and arrays without axes, are whole everywhere.
    ((2, 2), (None, 'mlp'), (None, 'model')),
    ((2, 2), (), ()),
])
def test_logical_axes_go_where_the_table_says(dims, axes, expected):
  sharding = partitioner(dims=dims).sharding(axes)
  assert mesh_axes(sharding, len(axes)) == expected


def test_additional_rules_add_axes_and_overrule_none():
  made = partitioner(additional=(
      ('prompt', 'data'), ('embed', 'data'), ('mlp', None), ('prompt', None)))
  assert mesh_axes(made.sharding(('prompt', 'embed')), 2) == ('data', None)
  assert mesh_axes(made.sharding(('embed', 'mlp')), 2) == (None, 'model')


@pytest.mark.parametrize('axes', [('prompt', 'embed'), ('embed', 'prompt')])
def test_an_axis_without_a_rule_is_refused_by_name(axes):
  with pytest.raises(ValueError, match="'prompt'.*additional_rules"):
    partitioner().sharding(axes)


@pytest.mark.parametrize('dims', [(0, 1), (1, 0), (3, 1), (1, 3), (None, 1)])
def test_other_numbers_of_dimensions_are_refused(dims):
  with pytest.raises(ValueError, match='each must be 1 or 2'):
    partitioning.standard_logical_axis_rules(*dims)


@pytest.mark.parametrize('num_partitions,submesh,model_size', [
    *((n, None, n) for n in ALL),
    *((n, (), n) for n in ALL),
    (None, (1, 1, 1, 1), 1), (None, (1, 1, 1, 2), 2), (None, (2, 1, 1, 2), 4),
    (None, (2, 2, 1, 2), 8), (1, (2, 1, 1, 2), 4), (4, (2, 2, 1, 1), 4),
])
def test_the_mesh_has_the_size_asked_for(num_partitions, submesh, model_size):
  mesh = partitioning.PjitPartitioner(num_partitions, submesh).mesh
  assert dict(mesh.shape) == {'data': 8 // model_size, 'model': model_size}
  assert mesh.axis_names == ('data', 'model')
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize('num_partitions,submesh,message', [
    (None, None, 'needs num_partitions or model_parallel_submesh'),
    (0, (), 'needs num_partitions or model_parallel_submesh'),
    (3, None, '3, but there are 8 devices'),
    (16, None, '16, but there are 8 devices'),
    (-2, None, '-2, but there are 8 devices'),
    (None, (3, 1, 1, 1), '3, but there are 8 devices'),
    (2, (2, 2, 1, 1), r'is 2, but .*\(2, 2, 1, 1\) has 4'),
    (8, (2, 2, 1, 1), r'is 8, but .*\(2, 2, 1, 1\) has 4'),
])
def test_sizes_that_cannot_be_are_refused(num_partitions, submesh, message):
  with pytest.raises(ValueError, match=message):
    partitioning.PjitPartitioner(num_partitions, submesh)


@pytest.mark.parametrize('count,partitions', [(1, 1), (4, 2), (6, 3)])
def test_a_mesh_of_some_devices(count, partitions):
  devices = jax.devices()[:count]
  mesh = partitioning.make_mesh(partitions, devices)
  assert mesh.devices.shape == (count // partitions, partitions)
  assert set(mesh.devices.flat) == set(devices)


def assert_pieces(array, whole, cuts):
  """Every device holds its piece and no more."""
  piece = tuple(n // cut for n, cut in zip(whole.shape, cuts, strict=True))
  assert len(array.addressable_shards) == 8
  for shard in array.addressable_shards:
    assert shard.data.shape == piece
    np.testing.assert_array_equal(shard.data, whole[shard.index])


@PARTITIONS
def test_a_parameter_is_really_cut(partitions):
  made = partitioner(partitions, dims=(1, 2))
  whole = np.arange(16 * 24, dtype=np.float32).reshape(16, 24)
  placed = jax.device_put(whole, made.sharding(('embed', 'mlp')))
  assert_pieces(placed, whole, (8 // partitions, partitions))
  assert_pieces(
      jax.device_put(whole, made.sharding()), whole, (1, 1))


@PARTITIONS
def test_a_batch_is_cut_along_data(partitions):
  made = partitioner(partitions)
  local = {'tokens': np.arange(48).reshape(16, 3).astype(np.int32),
           'weights': np.arange(16, dtype=np.float32)}
  whole = made.global_batch(local)
  assert whole.keys() == local.keys()
  for name, rows in local.items():
    assert whole[name].dtype == rows.dtype
    np.testing.assert_array_equal(whole[name], rows)
    assert_pieces(
        whole[name], rows, (8 // partitions,) + (1,) * (rows.ndim - 1))


def test_in_scope_modules_cut_activations_by_name():
  made = partitioner(2)
  whole = np.arange(8 * 6, dtype=np.float32).reshape(8, 6)

  def constrained(x):
    return nn.with_logical_constraint(x + 1.0, ('batch', 'mlp'))

  with made.scope():
    inside = jax.jit(constrained)(whole)
  assert_pieces(inside, whole + 1, (4, 2))
  outside = jax.jit(constrained)(whole)
  assert outside.sharding.num_devices == 1


@PARTITIONS
def test_one_process_feeds_the_whole_batch(partitions):
  assert partitioner(partitions).data_layout(16) == partitioning.DataLayout(
      batch_size=16, shard_id=0, num_shards=1,
      is_first_host_in_replica_set=True)


@pytest.mark.parametrize('partitions,batch_size,data_size', [
    (1, 12, 8), (1, 4, 8), (2, 6, 4), (4, 7, 2)])
def test_a_batch_that_cannot_be_cut_evenly_is_refused(
    partitions, batch_size, data_size):
  with pytest.raises(
      ValueError, match=f'{batch_size} cannot be cut over {data_size} devices'):
    partitioner(partitions).data_layout(batch_size)
