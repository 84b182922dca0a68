"""One training step and one evaluation step, compiled once each."""

from collections.abc import Mapping, Sequence
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np
import optax
from t5x import actions
from t5x import metrics as metrics_lib
from t5x import models
from t5x import optimizers
from t5x import partitioning
from t5x import train_state as train_state_lib
from t5x import weight_metrics

Batch = Mapping[str, Array]
Metrics = metrics_lib.Metrics
Parameters = train_state_lib.Parameters
TrainState = train_state_lib.TrainState

# T5X's configurations spell these `trainer.NAME`.
ActionMode = actions.ActionMode
BaseAction = actions.BaseAction
EarlyStoppingAction = actions.EarlyStoppingAction
TerminateOnNanAction = actions.TerminateOnNanAction
WeightMetricsComputer = weight_metrics.WeightMetricsComputer

# Counts steps whose loss or gradient was not finite; see `train_step`.
NONFINITE = 'nonfinite_steps'


def _gradients(
    model: models.BaseModel, state: TrainState, batch: Batch, key: Array
) -> tuple[Parameters, Metrics]:
  """Gradients of the trainable parameters only."""

  def loss_fn(trainable: Parameters):
    params = train_state_lib.nested(trainable | state.frozen)
    return model.loss_fn(params, batch, key)

  grads, metrics = jax.grad(loss_fn, has_aux=True)(state.trainable)
  return grads, metrics


def accumulate_gradients(
    model: models.BaseModel,
    state: TrainState,
    batch: Batch,
    key: Array,
    num_microbatches: int,
) -> tuple[Parameters, Metrics]:
  """Gradients of a batch, computed in parts of `B / num_microbatches` rows.

  Part i takes the rows i, i + n, i + 2n, ..., so that every part is spread over
  all data-parallel devices without moving a row. Gradients of the parts are
  summed, as the default loss is a sum over tokens.

  Args:
    model: gives the loss.
    state: gives the parameters.
    batch: rows first in every array.
    key: dropout key of the step.
    num_microbatches: parts; 1 does the whole batch at once.

  Returns:
    Gradients by path, and the metrics of the whole batch.

  Raises:
    ValueError: if the batch cannot be cut evenly.
  """
  if num_microbatches <= 1:
    return _gradients(model, state, batch, key)
  rows = next(iter(batch.values())).shape[0]
  if rows % num_microbatches:
    raise ValueError(
        f'BATCH_SIZE {rows} cannot be cut into trainer.Trainer.num_microbatches'
        f' = {num_microbatches} equal parts.')

  def part(i):
    return {
        name: x.reshape(-1, num_microbatches, *x.shape[1:])[:, i]
        for name, x in batch.items()
    }

  def add(total, i):
    new = _gradients(model, state, part(i), jax.random.fold_in(key, i))
    return jax.tree.map(lambda a, b: a + b, total, new), None

  shapes = jax.eval_shape(lambda: _gradients(model, state, part(0), key))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  (grads, metrics), _ = jax.lax.scan(
      add, zeros, jnp.arange(num_microbatches))
  return grads, metrics_lib.as_one_step(metrics)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: models.BaseModel,
    optimizer: optax.GradientTransformation,
    learning_rate_fn: optimizers.LearningRateCallable,
    base_key: Array,
    num_microbatches: int = 1,
    weight_metrics_computer: WeightMetricsComputer | None = None,
) -> tuple[TrainState, Metrics]:
  """One step: a pure function of the state and the batch.

  Args:
    state: before the step.
    batch: rows first in every array.
    model: gives the loss.
    optimizer: updates the trainable parameters.
    learning_rate_fn: reported; the optimiser has its own reference to it.
    base_key: the step's dropout key is this one folded with the step.
    num_microbatches: see `accumulate_gradients`.
    weight_metrics_computer: adds metrics of every trainable parameter.

  Returns:
    The state after the step and the metrics of the batch under the state
    before it. `nonfinite_steps` is one if the loss, a gradient or an update was
    infinite or not a number; the state is then worthless.
  """
  key = jax.random.fold_in(base_key, state.step)
  grads, metrics = accumulate_gradients(
      model, state, batch, key, num_microbatches)
  updates, opt_state = optimizer.update(
      grads, state.opt_state, state.trainable)
  norm = optax.tree.norm(grads)
  finite = (jnp.isfinite(norm) & jnp.isfinite(metrics['loss'].total)
            & jnp.isfinite(optax.tree.norm(updates)))
  per_step = metrics_lib.AveragePerStep
  metrics = {
      **metrics,
      'gradient_norm': per_step(total=norm),
      'learning_rate': per_step(total=learning_rate_fn(state.step)),
      NONFINITE: metrics_lib.Sum(1.0 - finite.astype(jnp.float32)),
  }
  if weight_metrics_computer is not None:
    metrics |= weight_metrics_computer.compute_metrics(
        grads, state.trainable, updates)
  state = state.replace(
      step=state.step + 1,
      trainable=optax.apply_updates(state.trainable, updates),
      opt_state=opt_state)
  return state, metrics


class Trainer:
  """Compiles the steps of a model for a mesh and runs them."""

  def __init__(
      self,
      model: models.BaseModel,
      partitioner: partitioning.PjitPartitioner,
      *,
      first_step: int,
      base_key: Array,
      learning_rate_fn: optimizers.LearningRateCallable,
      num_microbatches: int | None = None,
      weight_metrics_computer: WeightMetricsComputer | None = None,
      axes: Mapping[str, Sequence[str | None]] | None = None,
  ):
    """Nothing is compiled before the first step.

    Args:
      model: gives loss and optimiser.
      partitioner: gives the mesh.
      first_step: absolute step at which the run began.
      base_key: random key of all dropout.
      learning_rate_fn: from absolute step to rate.
      num_microbatches: see `accumulate_gradients`; None or 0 is one.
      weight_metrics_computer: see `train_step`.
      axes: logical axes by path, for optimisers with rules about them.
    """
    self.model = model
    self.partitioner = partitioner
    self.num_microbatches = num_microbatches or 1
    definition = model.optimizer_def
    if axes is not None:
      definition = definition.with_axes(axes)
    self.optimizer = definition.transformation(learning_rate_fn, first_step)
    step = functools.partial(
        train_step,
        model=model,
        optimizer=self.optimizer,
        learning_rate_fn=learning_rate_fn,
        num_microbatches=self.num_microbatches,
        weight_metrics_computer=weight_metrics_computer)
    key_kind = jax.random.key_impl(base_key)
    # The key is an argument, so that a run with another seed is the same
    # program; from numpy, as it is the same in all processes.
    self._key_bits = jax.device_put(
        np.asarray(jax.random.key_data(base_key)), partitioner.sharding())

    # Frozen parameters are an argument of their own: they are read, never
    # donated and never returned, so no step copies them.
    def moving_step(
        moving: TrainState, frozen: Parameters, batch: Batch, key_bits: Array):
      new, metrics = step(
          moving.replace(frozen=frozen), batch,
          base_key=jax.random.wrap_key_data(key_bits, impl=key_kind))
      return new.replace(frozen={}), metrics

    def evaluate(trainable: Parameters, frozen: Parameters, batch: Batch):
      params = train_state_lib.nested(trainable | frozen)
      return model.eval_fn(params, batch)[1]

    self._moving_step = moving_step
    self._compiled_step: jax.stages.Compiled | None = None
    self._evaluate = jax.jit(evaluate, out_shardings=partitioner.sharding())

  def lower_train(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
    """Traces the training step; the state after it lives where it did before.

    Args:
      state: a state, or its shapes and shardings.
      batch: a batch, or its shapes and shardings.

    Returns:
      The program before XLA's optimisations, to be compiled.
    """
    moving = state.replace(frozen={})
    placed = jax.tree.map(lambda x: x.sharding, moving)
    with self.partitioner.scope():
      return jax.jit(
          self._moving_step, donate_argnums=0,
          out_shardings=(placed, self.partitioner.sharding()),
      ).lower(moving, state.frozen, batch, self._key_bits)

  def compile_train(
      self, state: TrainState, batch: Batch) -> jax.stages.Compiled:
    """Compiles the training step; arguments are those of `lower_train`.

    Returns:
      The program, which knows its operations and its memory.
    """
    self._compiled_step = self.lower_train(state, batch).compile()
    return self._compiled_step

  def train(
      self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """One training step; the given state must not be used afterwards."""
    step = self._compiled_step or self.compile_train(state, batch)
    new, metrics = step(
        state.replace(frozen={}), state.frozen, batch, self._key_bits)
    return new.replace(frozen=state.frozen), metrics

  def eval(self, state: TrainState, batch: Batch) -> Metrics:
    """Metrics of a batch without dropout; compiled once per shape."""
    with self.partitioner.scope():
      return self._evaluate(state.trainable, state.frozen, batch)
