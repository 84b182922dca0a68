"""Meshes, and one table from logical axis names to mesh axes.

Parameters and batches are described by logical axes (`embed`, `mlp`, `batch`);
a mesh has the axes `data` and `model`. The table says which logical axis is cut
along which mesh axis; everything else here follows from it. Nothing here knows
what a train state is: functions take pytrees of arrays and of axis names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
from jax.experimental import mesh_utils
import numpy as np

PartitionSpec = jax.sharding.PartitionSpec
NamedSharding = jax.sharding.NamedSharding
LogicalAxisRules = Sequence[tuple[str, str | None]]
LogicalAxes = tuple[str | None, ...]


class AxisNames(tuple):
  """The logical axes of one array; a leaf of pytrees, unlike a plain tuple."""

  def __new__(cls, *names: str | None):
    return super().__new__(cls, names)


@dataclasses.dataclass(frozen=True)
class DataLayout:
  """Which part of every global batch a process has on its devices.

  Attributes:
    batch_size: rows of the global batch.
    shard_id: index of the process's part.
    num_shards: parts that the global batch is cut into; 1 also where the
      processes' rows overlap without being the same.
    is_first_host_in_replica_set: whether the process is the first one with its
      part.
  """

  batch_size: int
  shard_id: int
  num_shards: int
  is_first_host_in_replica_set: bool


def standard_logical_axis_rules(
    activation_partitioning_dims: int = 1,
    parameter_partitioning_dims: int = 1,
    additional_rules: LogicalAxisRules | None = None,
) -> LogicalAxisRules:
  """T5X's rules: batch along `data`, wide parameter axes along `model`.

  The first rule that applies wins, and a mesh axis is used once per array.

  Args:
    activation_partitioning_dims: 2 also cuts activations' `embed` axis along
      `model`.
    parameter_partitioning_dims: 2 also cuts parameters' `embed` axis along
      `data`, so that weights are spread over all devices.
    additional_rules: appended, for axes that this table does not know.

  Returns:
    Pairs (logical axis, mesh axis or None).

  Raises:
    ValueError: for a number of dimensions that is not 1 or 2.
  """
  embed: dict[tuple[int, int], list[str | None]] = {
      (1, 1): [None],
      (2, 1): ['model'],
      (1, 2): ['data'],
      (2, 2): ['model', 'data'],
  }
  dims = (activation_partitioning_dims, parameter_partitioning_dims)
  if dims not in embed:
    raise ValueError(
        'standard_logical_axis_rules: activation_partitioning_dims and '
        f'parameter_partitioning_dims are {dims}; each must be 1 or 2.')
  model_axes = ('vocab', 'mlp', 'heads', 'joined_kv')
  replicated = ('kv', 'relpos_buckets', 'abspos_buckets', 'length', 'layers',
                'stack', 'mlp_activations')
  return (
      ('batch', 'data'),
      *((axis, 'model') for axis in model_axes),
      *(('embed', axis) for axis in embed[dims]),
      *((axis, None) for axis in replicated),
      *(additional_rules or ()),
  )


def arrange_devices(
    model_partitions: int, devices: Sequence[Any]) -> np.ndarray:
  """Devices in rows that share a copy of the model, near ones together.

  JAX knows how the devices of a TPU of any generation are wired; axes of the
  torus are split where the partitions ask for it. Slices of TPUs, which a
  slower network connects, share no copy. Elsewhere the devices of a process,
  which count upwards, stay together as far as they go.

  Args:
    model_partitions: devices that share one copy of the model.
    devices: all of them.

  Returns:
    An array `[data, model]` of devices.

  Raises:
    ValueError: if the number of devices is not a multiple of the partitions.
  """
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if model_partitions < 1 or len(devices) // slices % model_partitions:
    raise ValueError(
        f'num_partitions is {model_partitions}, but there are {len(devices)} '
        f'devices{f" in {slices} slices" if slices > 1 else ""}; it must '
        'divide their number.')
  shape = (len(devices) // slices // model_partitions, model_partitions)
  if slices == 1:
    return mesh_utils.create_device_mesh(
        shape, devices, allow_split_physical_axes=True)
  return mesh_utils.create_hybrid_device_mesh(
      shape, (slices, 1), devices, allow_split_physical_axes=True)


def make_mesh(model_partitions: int, devices: Sequence[Any] | None = None):
  """A mesh `(data, model)` over all devices, on any kind of hardware.

  Args:
    model_partitions: devices that share one copy of the model.
    devices: defaults to all devices of all processes.

  Returns:
    A `jax.sharding.Mesh` with automatic axes.

  Raises:
    ValueError: if the number of devices is not a multiple of the partitions.
  """
  devices = jax.devices() if devices is None else devices
  return jax.sharding.Mesh(
      arrange_devices(model_partitions, devices), ('data', 'model'),
      axis_types=(jax.sharding.AxisType.Auto,) * 2)


def devices_of(backend: str) -> list[Any]:
  """All devices of a kind of hardware, of all processes.

  Args:
    backend: 'cpu', 'gpu', 'tpu' or another of JAX's platforms.

  Returns:
    The devices.

  Raises:
    ValueError: if there are none of the kind.
  """
  try:
    return jax.devices(backend)
  except RuntimeError as error:
    raise ValueError(
        f'PjitPartitioner.backend is {backend!r}, but there are only '
        f'{jax.default_backend()} devices here. Run it where such devices are, '
        'or set --gin.partitioning.PjitPartitioner.backend=None to use these.'
    ) from error


class PjitPartitioner:
  """Places pytrees on a mesh by the logical names of their axes."""

  def __init__(
      self,
      num_partitions: int | None = None,
      model_parallel_submesh: Sequence[int] | None = None,
      params_on_devices: bool = True,
      logical_axis_rules: LogicalAxisRules | None = None,
      backend: str | None = None,
  ):
    """Builds the mesh.

    Args:
      num_partitions: devices that share one copy of the model.
      model_parallel_submesh: the same as a hardware mesh `(x, y, z, core)`; its
        product is used, the placement is JAX's own for the hardware.
      params_on_devices: accepted for T5X's clients. Parameters are read one at
        a time, straight onto their devices; no host holds them all.
      logical_axis_rules: defaults to `standard_logical_axis_rules()`.
      backend: the kind of hardware, see `devices_of`; None is the one that JAX
        prefers.

    Raises:
      ValueError: if neither or contradicting sizes are given, or there are no
        devices of the backend.
    """
    submesh_size = math.prod(model_parallel_submesh or (0,))
    if not num_partitions and not submesh_size:
      raise ValueError(
          'PjitPartitioner needs num_partitions or model_parallel_submesh.')
    if submesh_size and num_partitions not in (None, 1, submesh_size):
      raise ValueError(
          f'PjitPartitioner: num_partitions is {num_partitions}, but '
          f'model_parallel_submesh {tuple(model_parallel_submesh or ())} has '
          f'{submesh_size} devices; give one of them.')
    self.mesh = make_mesh(
        submesh_size or num_partitions or 1,
        None if backend is None else devices_of(backend))
    self.params_on_devices = params_on_devices
    self.logical_axis_rules = tuple(
        logical_axis_rules or standard_logical_axis_rules())

  @contextlib.contextmanager
  def scope(self) -> Iterator[None]:
    """Within it, modules may constrain activations by logical axes."""
    with jax.set_mesh(self.mesh), nn.logical_axis_rules(
        self.logical_axis_rules):
      yield

  def sharding(self, axes: LogicalAxes = ()) -> NamedSharding:
    """The sharding of an array with these logical axes; () is replicated.

    Raises:
      ValueError: for a logical axis that has no rule.
    """
    known = {name for name, _ in self.logical_axis_rules}
    if unknown := [a for a in axes if a is not None and a not in known]:
      raise ValueError(
          f'No rule for the logical axis {unknown[0]!r} of {axes}; add it to '
          'standard_logical_axis_rules.additional_rules.')
    spec = nn.logical_to_mesh_axes(axes, self.logical_axis_rules)
    return NamedSharding(self.mesh, spec or PartitionSpec())

  @property
  def batch_sharding(self) -> NamedSharding:
    """The sharding of everything whose first axis is the batch."""
    return NamedSharding(self.mesh, PartitionSpec('data'))

  def get_data_layout(
      self, batch_size: int | None = None, host_index: int | None = None
  ) -> DataLayout:
    """How a global batch lies on the devices of processes.

    Nothing here reads by it, see `global_batch`; a reader of one's own may.

    Args:
      batch_size: rows of the global batch; None takes one per data shard.
      host_index: a process; None is this one.

    Returns:
      The process's part.

    Raises:
      ValueError: if the batch cannot be cut evenly over the `data` axis.
    """
    data_size = self.mesh.shape['data']
    batch_size = data_size if batch_size is None else batch_size
    process = jax.process_index() if host_index is None else host_index
    if batch_size % data_size:
      raise ValueError(
          f'BATCH_SIZE {batch_size} cannot be cut over {data_size} devices of '
          'the data axis; use a multiple, or more model partitions.')
    parts: dict[int, set[int]] = {}
    for part, devices in enumerate(self.mesh.devices):
      for device in devices:
        parts.setdefault(device.process_index, set()).add(part)
    distinct = sorted({tuple(sorted(p)) for p in parts.values()})
    if sum(len(p) for p in distinct) > data_size:
      distinct, parts = [()], dict.fromkeys(parts, set())
    mine = parts[process]
    return DataLayout(
        batch_size=batch_size,
        shard_id=distinct.index(tuple(sorted(mine))),
        num_shards=len(distinct),
        is_first_host_in_replica_set=process == min(
            p for p in parts if parts[p] == mine))

  def global_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Places a batch, of which every process has all rows, along `data`.

    A device gets its rows, whichever they are; so what a run sees does not
    depend on how many processes it has, or on which devices are theirs.

    Args:
      batch: from name to an array with rows first, the same in all processes.

    Returns:
      From name to global array.
    """
    return {
        name: jax.make_array_from_callback(
            rows.shape, self.batch_sharding, rows.__getitem__)
        for name, rows in batch.items()
    }

  def partition(
      self,
      fn: Callable[..., Any],
      in_axis_resources: Any,
      out_axis_resources: Any,
      static_argnums: int | Sequence[int] = (),
      donate_argnums: int | Sequence[int] = (),
  ) -> 'PartitionedFunction':
    """Compiles a function for the mesh when it is first called.

    Args:
      fn: its positional arguments are pytrees of arrays.
      in_axis_resources: per argument that is not static, `PartitionSpec`s in
        the argument's structure or a prefix of it; None leaves it to JAX.
      out_axis_resources: the same for what it returns.
      static_argnums: arguments that are compiled in.
      donate_argnums: arguments whose memory may be reused.

    Returns:
      The function.
    """
    def placed(resources):
      return jax.tree.map(
          lambda spec: NamedSharding(self.mesh, spec), resources,
          is_leaf=lambda x: isinstance(x, PartitionSpec))

    return PartitionedFunction(self, jax.jit(
        fn, in_shardings=placed(in_axis_resources),
        out_shardings=placed(out_axis_resources),
        static_argnums=static_argnums, donate_argnums=donate_argnums))

  def compile(self, partitioned_fn: 'PartitionedFunction', *args: Any) -> Any:
    """Compiles a function of `partition` for these arguments or their shapes.

    Returns:
      The program, to be called with arguments of the same shapes.
    """
    return partitioned_fn.lower(*args).compile()

  def move_params_to_devices(self, params: Any, axes: Any) -> Any:
    """Places a pytree of host arrays.

    Args:
      params: the arrays.
      axes: `AxisNames` or `PartitionSpec`s in the same structure.

    Returns:
      The arrays on the mesh.
    """
    def place(names, array):
      spec = isinstance(names, PartitionSpec)
      return jax.device_put(array, NamedSharding(self.mesh, names) if spec
                            else self.sharding(names))

    return jax.tree.map(
        place, axes, params,
        is_leaf=lambda x: isinstance(x, AxisNames | PartitionSpec))


@dataclasses.dataclass(frozen=True)
class PartitionedFunction:
  """A compiled function that is called within its partitioner's scope."""

  partitioner: PjitPartitioner
  function: Any

  def __call__(self, *args: Any) -> Any:
    """Calls it."""
    with self.partitioner.scope():
      return self.function(*args)

  def lower(self, *args: Any) -> Any:
    """See `jax.jit`'s `lower`."""
    with self.partitioner.scope():
      return self.function.lower(*args)
