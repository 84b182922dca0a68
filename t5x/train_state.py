"""What training moves, what it leaves alone, and where both live.

Parameter trees are flat here: a dictionary from path, as T5X spells it
(`encoder/layers_0/attention/query/kernel`), to array. One decision, taken once
from the optimiser's definition, splits it into trainable and frozen; gradients,
optimiser state, donation and checkpoints follow from that split.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
from typing import Any

from flax import linen as nn
from flax import traverse_util
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import numpy as np
import optax
from t5x import optimizers
from t5x import partitioning

Parameters = dict[str, Array]
InitFn = Callable[[Array], Mapping[str, Any]]


class TrainState(flax.struct.PyTreeNode):
  """A moment of a run.

  Attributes:
    step: absolute step, pretraining included, `[]`.
    trainable: parameters that the optimiser moves, by path.
    frozen: parameters that stay as they were restored, by path.
    opt_state: optax state of the trainable parameters.
  """

  step: Int[Array, '']
  trainable: Parameters
  frozen: Parameters
  opt_state: optax.OptState

  @property
  def params(self) -> dict[str, Any]:
    """All parameters as the nested dictionary that `Module.apply` takes."""
    return nested(self.trainable | self.frozen)


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
  """What is known of a parameter before it has a value.

  Attributes:
    shape: its shape.
    dtype: its dtype.
    axes: logical names of its axes.
    trainable: whether the optimiser moves it.
  """

  shape: tuple[int, ...]
  dtype: Any
  axes: partitioning.LogicalAxes
  trainable: bool


ParameterInfos = dict[str, ParameterInfo]


def nested(parameters: Mapping[str, Any]) -> dict[str, Any]:
  """From paths to the nested dictionary of a Flax module."""
  return traverse_util.unflatten_dict(parameters, sep='/')


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  """From the nested dictionary of a Flax module to paths."""
  return traverse_util.flatten_dict(tree, sep='/')


def describe(
    init_fn: InitFn, optimizer_def: optimizers.OptimizerDef
) -> ParameterInfos:
  """Shapes, axes and fate of every parameter, without allocating any.

  Args:
    init_fn: from a key to the variables of the model. Its parameters are boxed
      with their logical axes, or these are in a collection `params_axes`, as
      `flax.linen.partitioning.param_with_axes` puts them.
    optimizer_def: decides what is trainable.

  Returns:
    From path to what is known of the parameter.

  Raises:
    ValueError: if a parameter does not name its axes, or the optimiser selects
      parameters that do not exist.
  """
  variables = jax.eval_shape(init_fn, jax.random.key(0))
  boxed = flat(variables['params'])
  beside = flat(variables.get('params_axes', {}))
  labels = optimizer_def.labels(boxed)
  infos = {}
  for path, box in boxed.items():
    named = (box if isinstance(box, nn.LogicallyPartitioned)
             else beside.get(f'{path}_axes'))
    value = nn.meta.unbox(box)
    if named is None or len(named.names) != value.ndim:
      raise ValueError(
          f'The parameter {path} of {value.ndim} axes names '
          f'{"no logical axes" if named is None else tuple(named.names)}; '
          'declare it with nn.with_logical_partitioning(init, axes) or '
          'flax.linen.partitioning.param_with_axes, one name per axis.')
    infos[path] = ParameterInfo(
        value.shape, value.dtype, tuple(named.names), path in labels)
  return infos


def shardings(
    infos: ParameterInfos, partitioner: partitioning.PjitPartitioner
) -> dict[str, partitioning.NamedSharding]:
  """Where every parameter lives.

  Raises:
    ValueError: if an axis cannot be cut evenly over the model partitions.
  """
  placement = {}
  for path, info in infos.items():
    sharding = partitioner.sharding(info.axes)
    for axis, size, cut in zip(
        info.axes, info.shape, sharding.spec, strict=False):
      parts = partitioner.mesh.shape[cut] if cut else 1
      if size % parts:
        raise ValueError(
            f'{path}: the axis {axis} of {size} cannot be cut into {parts} '
            'equal parts; choose PjitPartitioner.num_partitions so that it '
            'divides the number of heads.')
    placement[path] = sharding
  return placement


def initialize(
    init_fn: InitFn,
    key: Array,
    paths: Collection[str],
    placement: Mapping[str, partitioning.NamedSharding],
) -> Parameters:
  """Fresh values for some parameters; the others are never computed.

  Args:
    init_fn: from a key to the variables of the model.
    key: random key.
    paths: the parameters wanted.
    placement: where they go.

  Returns:
    The values, sharded.
  """
  if not paths:
    return {}

  def init(key):
    values = flat(nn.meta.unbox(init_fn(key)['params']))
    return {path: values[path] for path in paths}

  out = {path: placement[path] for path in paths}
  return jax.jit(init, out_shardings=out)(key)


def template(
    infos: ParameterInfos,
    placement: Mapping[str, partitioning.NamedSharding],
    optimizer: optax.GradientTransformation,
) -> TrainState:
  """Shapes, dtypes and placement of a state, without allocating any of it.

  Args:
    infos: what is known of every parameter.
    placement: where every parameter lives.
    optimizer: its state covers the trainable parameters only. Accumulators as
      large as a parameter are placed like it; smaller ones (factored moments,
      counters) are replicated.

  Returns:
    A state of `jax.ShapeDtypeStruct`.
  """
  parameters: dict[str, Any] = {
      path: jax.ShapeDtypeStruct(
          info.shape, info.dtype, sharding=placement[path])
      for path, info in infos.items()
  }
  trainable = {p: x for p, x in parameters.items() if infos[p].trainable}
  frozen = {p: x for p, x in parameters.items() if not infos[p].trainable}
  mesh = next(iter(placement.values())).mesh
  replicated = partitioning.NamedSharding(mesh, partitioning.PartitionSpec())

  step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)

  def placed(path, leaf):
    names = [entry.key for entry in path
             if isinstance(entry, jax.tree_util.DictKey)]
    like = next((trainable[n] for n in names if n in trainable), None)
    if like is None or like.shape != leaf.shape:
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated)
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=like.sharding)

  return TrainState(
      step=step,
      trainable=trainable,
      frozen=frozen,
      opt_state=jax.tree_util.tree_map_with_path(
          placed, jax.eval_shape(optimizer.init, trainable)))


def create(
    step: int,
    parameters: Parameters,
    like: TrainState,
    optimizer: optax.GradientTransformation,
) -> TrainState:
  """A state whose optimiser has not moved yet.

  Args:
    step: absolute step of the parameters.
    parameters: all of them, placed.
    like: the state's template.
    optimizer: makes the optimiser state.

  Returns:
    The state.
  """
  trainable = {path: parameters[path] for path in like.trainable}
  out = jax.tree.map(lambda x: x.sharding, like.opt_state)
  return TrainState(
      # From numpy: a JAX array would become one of several processes' wrongly.
      step=jax.device_put(np.int32(step), like.step.sharding),
      trainable=trainable,
      frozen={path: parameters[path] for path in like.frozen},
      opt_state=jax.jit(optimizer.init, out_shardings=out)(trainable))
