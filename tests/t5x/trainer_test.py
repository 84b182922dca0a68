import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x import metrics as metrics_lib
from t5x import models
from t5x import optimizers
from t5x import trainer as trainer_lib

PROMPT = r'.*/prompt/.*'


def _values(parameters):
  return {path: np.asarray(x) for path, x in parameters.items()}


def test_only_the_prompt_moves_bit_for_bit(tiny):
  trainer, state = tiny.start(tiny.model(PROMPT, prompt_length=3))
  assert list(state.trainable) == ['encoder/prompt/prompt/prompt']
  frozen, prompt = _values(state.frozen), _values(state.trainable)
  after, _ = tiny.steps(trainer, state, 3)
  assert frozen.keys() == after.frozen.keys()
  for path, value in frozen.items():
    np.testing.assert_array_equal(value, after.frozen[path], err_msg=path)
  moved = np.abs(prompt['encoder/prompt/prompt/prompt']
                 - after.trainable['encoder/prompt/prompt/prompt'])
  assert (moved > 0).all()
  assert int(after.step) == 3


def test_optimiser_state_is_of_the_trainable_leaves_only(tiny):
  _, state = tiny.start(tiny.model(PROMPT, prompt_length=3))
  sizes = [x.size for x in jax.tree.leaves(state.opt_state)]
  assert sum(sizes) <= 3 * 8 + 8  # One accumulator, and counters.


def _products(jaxpr):
  """Every matrix product of a program, nested programs included."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      yield equation
    for value in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from _products(inner)


def _step_products(tiny, *regexes):
  """The matrix products of one training step."""
  trainer, state = tiny.start(tiny.model(*regexes, prompt_length=3))
  step = functools.partial(
      trainer_lib.train_step, model=trainer.model, optimizer=trainer.optimizer,
      learning_rate_fn=lambda step: jnp.float32(0.3),
      base_key=jax.random.key(0))
  return list(_products(jax.make_jaxpr(step)(state, tiny.batch()).jaxpr))


def test_no_gradient_of_a_frozen_weight_is_computed(tiny):
  # The gradient of a kernel [8, 16] is a matrix product of that shape.
  def shapes(products):
    return {equation.outvars[0].aval.shape for equation in products}

  kernels = {(8, 16), (16, 8), (8, 32)}
  assert kernels & shapes(_step_products(tiny))
  assert not kernels & shapes(_step_products(tiny, PROMPT))


def test_frozen_weights_cost_two_thirds(tiny):
  # Forward, gradient of the input, gradient of the weight cost the same.
  def flops(products):
    total = 0
    for equation in products:
      (summed, _), _ = equation.params['dimension_numbers']
      left = equation.invars[0].aval.shape
      total += int(np.prod([left[i] for i in summed])
                   * np.prod(equation.outvars[0].aval.shape))
    return total

  everything = flops(_step_products(tiny))
  assert flops(_step_products(tiny, PROMPT)) < 0.75 * everything


def test_gradient_norm_and_finite_flag_are_reported(tiny):
  trainer, state = tiny.start(tiny.model(PROMPT, prompt_length=3))
  _, (row,) = tiny.steps(trainer, state, 1)
  assert row['gradient_norm'] > 0
  assert row[trainer_lib.NONFINITE] == 0
  assert row['learning_rate'] == pytest.approx(0.3)


def test_weight_metrics_are_of_what_is_trained(tiny):
  path, count = 'encoder/prompt/prompt/prompt', 2
  trainer, state = tiny.start(
      tiny.model(PROMPT, prompt_length=3),
      weight_metrics_computer=trainer_lib.WeightMetricsComputer())
  values = [_values(state.trainable)[path].astype(np.float64)]
  rows = []
  for seed in range(count):
    state, (row,) = tiny.steps(trainer, state, 1, seed)
    rows.append(row)
    values.append(_values(state.trainable)[path].astype(np.float64))

  def rms(x):
    return np.sqrt(np.mean(x ** 2))

  for row, before, after in zip(rows, values, values[1:], strict=False):
    found = {name: row[name] for name in row if name.startswith('weight_')}
    size = np.sqrt(before.size)
    assert found == pytest.approx({
        'weight_gradient_norm': row['gradient_norm'],
        f'weight_gradient_rms/{path}': row['gradient_norm'] / size,
        f'weight_rms/{path}': rms(before),
        f'weight_max/{path}': np.abs(before).max(),
        f'weight_update_rms/{path}': rms(after - before),
        f'weight_update_divided_by_weight_rms/{path}':
            rms(after - before) / rms(before),
    }, rel=1e-4)


def test_a_loss_that_is_not_finite_is_flagged(tiny):
  trainer, state = tiny.start(tiny.model(PROMPT, prompt_length=3))
  path = 'decoder/logits_dense/kernel'
  state.frozen[path] = state.frozen[path].at[0, 0].set(jnp.nan)
  _, (row,) = tiny.steps(trainer, state, 1)
  assert row[trainer_lib.NONFINITE] == 1


def test_an_update_that_is_not_finite_is_flagged(tiny):
  # A schedule without warmup steps divides by zero at step 0.
  plain = tiny.model(PROMPT, prompt_length=3)
  trainer, state = tiny.start(plain)
  trainer = trainer_lib.Trainer(
      plain, trainer.partitioner, first_step=0, base_key=jax.random.key(0),
      learning_rate_fn=lambda step: jnp.float32(jnp.nan))
  _, (row,) = tiny.steps(trainer, state, 1)
  assert np.isfinite(row['loss']) and np.isfinite(row['gradient_norm'])
  assert row[trainer_lib.NONFINITE] == 1


def test_a_gradient_that_is_not_finite_is_flagged(tiny):
  class Model(models.EncoderDecoderModel):
    def loss_fn(self, params, batch, dropout_rng):
      loss, metrics = super().loss_fn(params, batch, dropout_rng)
      prompt = params['encoder']['prompt']['prompt']['prompt']
      still = prompt - jax.lax.stop_gradient(prompt)
      # Zero, with the gradient 0 / 0.
      return loss + jnp.sqrt(jnp.sum(jnp.square(still))), metrics

  plain = tiny.model(PROMPT, prompt_length=3)
  trainer, state = tiny.start(Model(
      plain.module, None, None, plain.optimizer_def))
  _, (row,) = tiny.steps(trainer, state, 1)
  assert np.isfinite(row['loss'])
  assert row[trainer_lib.NONFINITE] == 1


def test_microbatches_equal_the_whole_batch(tiny):
  whole, state = tiny.start(tiny.model(PROMPT, prompt_length=3))
  parts, same = tiny.start(
      tiny.model(PROMPT, prompt_length=3), num_microbatches=4)
  state, rows = tiny.steps(whole, state, 2)
  same, part_rows = tiny.steps(parts, same, 2)
  for path, value in state.trainable.items():
    np.testing.assert_allclose(value, same.trainable[path], rtol=2e-5)
  for name, value in rows[1].items():
    if not name.startswith('timing'):
      assert part_rows[1][name] == pytest.approx(value, rel=1e-4), name


def test_uneven_microbatches_are_refused(tiny):
  trainer, state = tiny.start(
      tiny.model(PROMPT, prompt_length=3), num_microbatches=3)
  with pytest.raises(ValueError, match='BATCH_SIZE 8.*num_microbatches = 3'):
    tiny.steps(trainer, state, 1)


def test_dropout_depends_on_seed_and_step_only(tiny):
  model = tiny.model(PROMPT, prompt_length=3, dropout_rate=0.3)

  def loss(key_seed, step):
    trainer, state = tiny.start(model)
    trainer = trainer_lib.Trainer(
        model, trainer.partitioner, first_step=0,
        base_key=jax.random.key(key_seed),
        learning_rate_fn=lambda step: jnp.float32(0.3))
    batch = trainer.partitioner.global_batch(tiny.batch())
    _, metrics = trainer.train(state.replace(step=state.step + step), batch)
    return metrics_lib.to_host(metrics)['loss'].total

  assert loss(1, 5) == loss(1, 5)
  assert len({loss(1, 5), loss(1, 6), loss(2, 5)}) == 3


def test_the_step_sees_the_absolute_step(tiny):
  seen = []
  class Spy(optimizers.OptimizerDef):
    def transformation(self, learning_rate, first_step):
      seen.append(first_step)
      return optimizers.sgd(0.1).optax_optimizer

  tiny.start(tiny.model(PROMPT, prompt_length=3, definition=Spy()),
             first_step=1_100_000)
  assert seen == [1_100_000]


def test_a_second_shape_is_not_compiled_silently(tiny):
  trainer, state = tiny.start(tiny.model(PROMPT, prompt_length=3))
  state, _ = tiny.steps(trainer, state, 1)
  longer = {name: np.concatenate([x, x], axis=1)
            for name, x in tiny.batch().items()}
  with pytest.raises(TypeError):
    trainer.train(state, trainer.partitioner.global_batch(longer))
