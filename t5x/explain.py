"""What a program would do, told before anything is compiled or written.

Shapes alone are used: no parameter is read or allocated, nothing is compiled.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
from t5x import datasets
from t5x import gin_utils
from t5x import inspection
from t5x import model_info
from t5x import models
from t5x import partitioning
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib

Shapes = Mapping[str, tuple[int, ...]]


def training(
    trainer: trainer_lib.Trainer,
    infos: train_state_lib.ParameterInfos,
    config: datasets.DatasetConfig,
    shapes: Shapes,
    steps: tuple[int, int],
) -> str:
  """Explains a training run.

  Args:
    trainer: gives model, mesh and optimiser.
    infos: what is known of every parameter.
    config: the training data.
    shapes: shapes of a global batch.
    steps: the absolute steps where it begins and where it ends.

  Returns:
    Lines of text.

  Raises:
    DatasetError: if nothing could be learned from the data.
  """
  partitioner = trainer.partitioner
  placement = train_state_lib.shardings(infos, partitioner)
  state = train_state_lib.template(infos, placement, trainer.optimizer)
  rows = inspection.first_rows(config)
  counted = {
      'parameters': _bytes_per_device((state.trainable, state.frozen)),
      'gradients': _bytes_per_device(state.trainable),
      'optimiser': _bytes_per_device(state.opt_state),
      'batch': _batch_bytes(shapes, partitioner),
      'activations': _activation_bytes(trainer.model, state, shapes)
                     // partitioner.mesh.shape['data']
                     // max(trainer.num_microbatches, 1),
  }
  return '\n'.join([
      *_configuration(),
      model_info.summary(infos, shapes, *steps),
      _devices(partitioner),
      _memory(counted),
      '  (activations: all that the backward pass reads, as traced, cut over '
      'the data axis only; XLA merges and recomputes much of it)',
      *inspection.check(config, infos, rows),
      *inspection.first_example(config, rows)])


def inference(
    model: models.BaseModel,
    partitioner: partitioning.PjitPartitioner,
    config: datasets.DatasetConfig,
) -> str:
  """Explains an evaluation or an inference.

  Args:
    model: what is run.
    partitioner: the mesh.
    config: the data.

  Returns:
    Lines of text.

  Raises:
    ValueError: if the data or the mesh does not fit the model.
  """
  converter = datasets.feature_converter(model.FEATURE_CONVERTER_CLS)
  partitioner.get_data_layout(config.batch_size)
  known = config.task_feature_lengths is not None
  shapes = (datasets.model_feature_shapes(config, converter) if known
            else datasets.some_feature_shapes(converter))
  infos = train_state_lib.describe(
      lambda key: model.get_initial_variables(key, shapes),
      model.optimizer_def)
  inspection.require_vocabulary_fits(config, infos)
  placement = train_state_lib.shardings(infos, partitioner)
  counted = {'parameters': _bytes_per_device([
      jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=placement[path])
      for path, info in infos.items()])}
  batch = (f'batch: {model_info.shapes_text(shapes)}' if known else
           f'batch: {config.batch_size} rows as long as the longest example')
  return '\n'.join([
      *_configuration(),
      f'parameters: {model_info.count(infos):,}, of which none is trained',
      batch, _devices(partitioner), _memory(counted),
      '  (not counted: activations and the decoding cache)',
      *inspection.first_example(config, inspection.first_rows(config, 1))])


def _configuration() -> list[str]:
  """Every parameter in use, defaults included, as gin would read it."""
  text = gin_utils.operative_config_str().strip()
  return ['configuration:', *(f'  {line}' for line in text.splitlines()), '']


def _devices(partitioner: partitioning.PjitPartitioner) -> str:
  """The mesh in words."""
  mesh = partitioner.mesh
  device = mesh.devices.flat[0]
  return (f'devices: {mesh.devices.size} x {device.device_kind}, data '
          f'{mesh.shape["data"]} x model {mesh.shape["model"]}')


def _memory(counted: Mapping[str, int]) -> str:
  """Bytes per device, item by item, and together."""
  items = ', '.join(f'{name} {_size(n)}' for name, n in counted.items())
  return (f'memory per device: {items}; together '
          f'{_size(sum(counted.values()))}')


def _size(count: float) -> str:
  """A number of bytes for people."""
  for unit in ('B', 'KiB', 'MiB'):
    if count < 1024:
      return f'{count:.4g} {unit}'
    count = count / 1024
  return f'{count:.4g} GiB'


def _bytes_per_device(tree: Any) -> int:
  """What one device holds of placed arrays."""
  return sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree))


def _batch_bytes(
    shapes: Shapes, partitioner: partitioning.PjitPartitioner) -> int:
  """What one device holds of a batch; all features have four bytes."""
  sharding = partitioner.batch_sharding
  return sum(4 * math.prod(sharding.shard_shape(shape))
             for shape in shapes.values())


def _activation_bytes(
    model: models.BaseModel, state: train_state_lib.TrainState, shapes: Shapes
) -> int:
  """What the backward pass keeps of the forward pass, over all devices.

  The function that `jax.vjp` returns holds it; parameters and batch, which it
  holds too, are not counted.
  """
  batch = {
      name: jax.ShapeDtypeStruct(
          shape, jnp.float32 if 'weights' in name else jnp.int32)
      for name, shape in shapes.items()}

  def kept(trainable, frozen, batch) -> Sequence[jax.Array]:
    def loss_fn(trainable):
      params = train_state_lib.nested(trainable | frozen)
      return model.loss_fn(params, batch, jax.random.key(0))[0]

    return jax.tree.leaves(jax.vjp(loss_fn, trainable)[1])

  jaxpr = jax.make_jaxpr(kept)(state.trainable, state.frozen, batch).jaxpr
  given = {id(variable) for variable in jaxpr.invars}
  found = {id(variable): variable.aval for variable in jaxpr.outvars
           if id(variable) not in given}
  return sum(math.prod(aval.shape) * aval.dtype.itemsize
             for aval in found.values())
