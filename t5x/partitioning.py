"""Meshes, and one table from logical axis names to mesh axes.

Parameters and batches are described by logical axes (`embed`, `mlp`, `batch`);
a mesh has the axes `data` and `model`. The table says which logical axis is cut
along which mesh axis; everything else here follows from it. Nothing here knows
what a train state is: functions take pytrees of arrays and of axis names.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import numpy as np

PartitionSpec = jax.sharding.PartitionSpec
NamedSharding = jax.sharding.NamedSharding
LogicalAxisRules = Sequence[tuple[str, str | None]]
LogicalAxes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class DataLayout:
  """Which rows of every global batch this process feeds.

  Attributes:
    batch_size: rows of the global batch.
    shard_id: index of this process's slice.
    num_shards: slices that the global batch is cut into.
    is_first_host_in_replica_set: whether this process is the one that reports
      for its slice.
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
  if model_partitions < 1 or len(devices) % model_partitions:
    raise ValueError(
        f'num_partitions is {model_partitions}, but there are {len(devices)} '
        'devices; it must divide their number.')
  shape = (len(devices) // model_partitions, model_partitions)
  automatic = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh(
      shape, ('data', 'model'), devices=devices, axis_types=automatic)


class PjitPartitioner:
  """Places pytrees on a mesh by the logical names of their axes."""

  def __init__(
      self,
      num_partitions: int | None = None,
      model_parallel_submesh: Sequence[int] | None = None,
      logical_axis_rules: LogicalAxisRules | None = None,
  ):
    """Builds the mesh.

    Args:
      num_partitions: devices that share one copy of the model.
      model_parallel_submesh: the same as a hardware mesh `(x, y, z, core)`; its
        product is used, the placement is JAX's own for the hardware.
      logical_axis_rules: defaults to `standard_logical_axis_rules()`.

    Raises:
      ValueError: if neither or contradicting sizes are given.
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
    self.mesh = make_mesh(submesh_size or num_partitions or 1)
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

  def data_layout(self, batch_size: int) -> DataLayout:
    """How a global batch is cut over processes.

    Processes whose devices hold the same rows of the batch (a model that spans
    processes) read the same slice.

    Args:
      batch_size: rows of the global batch.

    Returns:
      This process's slice.

    Raises:
      ValueError: if the batch cannot be cut evenly over the `data` axis.
    """
    data_size = self.mesh.shape['data']
    if batch_size % data_size:
      raise ValueError(
          f'BATCH_SIZE {batch_size} cannot be cut over {data_size} devices of '
          'the data axis; use a multiple, or more model partitions.')
    rows: Mapping[Any, Any] = self.batch_sharding.devices_indices_map(
        (batch_size,))
    slices: dict[int, set[int]] = {}
    for device, index in rows.items():
      start = index[0].start or 0
      slices.setdefault(device.process_index, set()).add(start)
    starts = [tuple(sorted(slices[p])) for p in sorted(slices)]
    distinct = sorted(set(starts))
    mine = starts[jax.process_index()]
    return DataLayout(
        batch_size=batch_size,
        shard_id=distinct.index(mine),
        num_shards=len(distinct),
        is_first_host_in_replica_set=starts.index(mine) == jax.process_index(),
    )

  def from_whole_batch(
      self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """As `global_batch`, from all rows, which every process has."""
    return {
        name: jax.make_array_from_callback(
            rows.shape, self.batch_sharding, rows.__getitem__)
        for name, rows in batch.items()
    }

  def global_batch(self, local: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Turns this process's rows into global arrays cut along `data`."""
    sharding = self.batch_sharding
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in local.items()
    }
