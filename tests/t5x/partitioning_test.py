import dataclasses

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


def test_devices_are_of_the_backend():
  mesh = partitioning.PjitPartitioner(2, backend='cpu').mesh
  assert mesh.shape == {'data': 4, 'model': 2}
  with pytest.raises(ValueError, match='only cpu devices.*backend=None'):
    partitioning.PjitPartitioner(1, backend='tpu')


@pytest.mark.parametrize('count,partitions', [(1, 1), (4, 2), (6, 3)])
def test_a_mesh_of_some_devices(count, partitions):
  devices = jax.devices()[:count]
  mesh = partitioning.make_mesh(partitions, devices)
  assert mesh.devices.shape == (count // partitions, partitions)
  assert set(mesh.devices.flat) == set(devices)


@dataclasses.dataclass(frozen=True)
class Device:
  """What JAX knows of a device that is not here."""

  id: int
  process_index: int
  platform: str
  device_kind: str
  coords: tuple[int, int, int] = (0, 0, 0)
  core_on_chip: int = 0
  slice_index: int = 0


def tpus(kind, bounds, cores=1, slices=1):
  """The devices of one or more tori of TPUs, four chips per process."""
  places = [(s, x, y, z, core) for s in range(slices)
            for z in range(bounds[2]) for y in range(bounds[1])
            for x in range(bounds[0]) for core in range(cores)]
  return [Device(i, i // (4 * cores), 'tpu', kind, place[1:4], place[4],
                 place[0]) for i, place in enumerate(places)]


HARDWARE = {
    'TPU v2-32': tpus('TPU v2', (4, 4, 1), cores=2),
    'TPU v3-8': tpus('TPU v3', (2, 2, 1), cores=2),
    'TPU v3-32': tpus('TPU v3', (4, 4, 1), cores=2),
    'TPU v4-8': tpus('TPU v4', (2, 2, 1)),
    'TPU v4-128': tpus('TPU v4', (4, 4, 4)),
    'TPU v5e-8': tpus('TPU v5 lite', (2, 4, 1)),
    'TPU v5e-16': tpus('TPU v5 lite', (4, 4, 1)),
    'TPU v5e-64': tpus('TPU v5 lite', (8, 8, 1)),
    'TPU v5p-32': tpus('TPU v5p', (2, 2, 4)),
    'TPU v6e-16': tpus('TPU v6 lite', (4, 4, 1)),
    'two slices of TPU v5e-16': tpus('TPU v5 lite', (4, 4, 1), slices=2),
    'two hosts of four GPUs': [
        Device(i, i // 4, 'gpu', 'NVIDIA H100') for i in range(8)],
    'a generation to come': tpus('TPU v99', (4, 4, 2)),
}


@pytest.mark.parametrize('hardware,partitions', [
    (name, n) for name in HARDWARE for n in ALL if n <= len(HARDWARE[name])])
def test_devices_of_any_hardware_are_arranged(hardware, partitions):
  devices = HARDWARE[hardware]
  rows = partitioning.arrange_devices(partitions, devices)
  assert rows.shape == (len(devices) // partitions, partitions)
  assert sorted(d.id for d in rows.flat) == [d.id for d in devices]
  for row in rows:  # What shares a copy of the model is near.
    assert len({device.slice_index for device in row}) == 1
    if devices[0].platform == 'gpu' and partitions <= 4:
      assert len({device.process_index for device in row}) == 1
    far = np.ptp([device.coords for device in row], axis=0).sum()
    assert far < max(partitions, 2)


def test_partitions_do_not_span_slices():
  with pytest.raises(ValueError, match='32, but there are 32 .* in 2 slices'):
    partitioning.arrange_devices(32, HARDWARE['two slices of TPU v5e-16'])


def layouts(rows):
  """What every process of a mesh of devices feeds."""
  made = partitioner()
  processes = np.array(rows)
  made.mesh = _Mesh(np.vectorize(
      lambda p: Device(0, p, 'cpu', 'cpu'), otypes=[object])(processes))
  return [(x.shard_id, x.num_shards, x.is_first_host_in_replica_set)
          for x in (made.get_data_layout(24, host_index=p)
                    for p in range(processes.max() + 1))]


@dataclasses.dataclass
class _Mesh:
  devices: np.ndarray

  @property
  def shape(self):
    return {'data': len(self.devices)}


# Rows are parts of the data axis; in them the processes of the devices.
@pytest.mark.parametrize('rows,expected', [
    ([[0], [0], [1], [1]], [(0, 2, True), (1, 2, True)]),
    ([[0], [1], [0], [1]], [(0, 2, True), (1, 2, True)]),  # Not contiguous.
    ([[1], [1], [0], [0]], [(1, 2, True), (0, 2, True)]),
    ([[0, 1], [0, 1]], [(0, 1, True), (0, 1, False)]),  # A model in both.
    ([[0, 1], [2, 3]], [(0, 2, True), (0, 2, False), (1, 2, True),
                        (1, 2, False)]),
    # Process 1 has rows of two others: all feed everything.
    ([[0, 0, 1], [1, 2, 2]], [(0, 1, True), (0, 1, False), (0, 1, False)]),
])
def test_parts_of_processes(rows, expected):
  assert layouts(rows) == expected


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


def test_a_function_is_partitioned_as_asked():
  made = partitioning.PjitPartitioner(2, params_on_devices=False)
  rows = np.arange(16, dtype=np.float32).reshape(8, 2)
  kernel = np.arange(8, dtype=np.float32).reshape(2, 4)
  spec = partitioning.PartitionSpec

  def product(params, x, power):
    hidden = nn.with_logical_constraint(
        x @ params['kernel'], ('batch', 'mlp'))
    return {'out': hidden**power}

  program = made.partition(
      product, in_axis_resources=({'kernel': spec(None, 'model')}, None),
      out_axis_resources=None, static_argnums=2)  # As the module says.
  expected = np.square(rows @ kernel)
  assert_pieces(program({'kernel': kernel}, rows, 2)['out'], expected, (4, 2))
  compiled = made.compile(program, {'kernel': kernel}, rows, 2)
  assert_pieces(compiled({'kernel': kernel}, rows)['out'], expected, (4, 2))


def test_donated_arguments_are_gone():
  made = partitioner(2)
  spec = partitioning.PartitionSpec('data')
  x = jax.device_put(np.ones((8, 2), np.float32), made.batch_sharding)
  made.partition(lambda x: x + 1.0, (spec,), spec, donate_argnums=0)(x)
  assert x.is_deleted()


def test_parameters_move_to_devices_by_their_axes():
  made = partitioner(2)
  whole = {'a': np.arange(32, dtype=np.float32).reshape(4, 8),
           'b': {'c': np.arange(8, dtype=np.float32)}}
  moved = made.move_params_to_devices(whole, {
      'a': partitioning.AxisNames('embed', 'mlp'),
      'b': {'c': partitioning.PartitionSpec('data')}})
  assert_pieces(moved['a'], whole['a'], (1, 2))
  assert_pieces(moved['b']['c'], whole['b']['c'], (4,))
  assert partitioning.AxisNames('embed', None) == ('embed', None)


@PARTITIONS
def test_one_process_feeds_the_whole_batch(partitions):
  made = partitioner(partitions)
  assert made.get_data_layout(16) == partitioning.DataLayout(
      batch_size=16, shard_id=0, num_shards=1,
      is_first_host_in_replica_set=True)
  assert made.get_data_layout().batch_size == 8 // partitions


@pytest.mark.parametrize('partitions,batch_size,data_size', [
    (1, 12, 8), (1, 4, 8), (2, 6, 4), (4, 7, 2)])
def test_a_batch_that_cannot_be_cut_evenly_is_refused(
    partitions, batch_size, data_size):
  with pytest.raises(
      ValueError, match=f'{batch_size} cannot be cut over {data_size} devices'):
    partitioner(partitions).get_data_layout(batch_size)
