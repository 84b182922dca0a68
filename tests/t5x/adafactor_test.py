import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from t5x import adafactor

RATE, STEPS, PRETRAINED = 0.3, 22, 1_100_000
SHAPES = ((100, 768), (150, 768), (128,), (130, 200))
START = {str(shape): np.float32(np.random.default_rng(0).normal(size=shape))
         for shape in SHAPES}


def rms(x):
  return np.sqrt(np.mean(np.square(x)))


class Reference:
  """One parameter under T5X's Adafactor, in float64, from the formulas."""

  def __init__(
      self, value, first_step, *, scale, weight_decay, decay_rate=0.8,
      step_offset=0, epsilon1=1e-30, epsilon2=1e-3, clip=1.0, beta1=None,
      factored=True, exponent=None, largest=np.inf):
    self.p = np.float64(value)
    self.t = first_step - step_offset
    self.scale, self.weight_decay, self.clip = scale, weight_decay, clip
    self.decay_rate, self.epsilon1 = decay_rate, epsilon1
    self.epsilon2, self.exponent, self.largest = epsilon2, exponent, largest
    self.beta1, self.m = beta1, 0.0
    self.column = self.row = None
    if factored and value.ndim > 1 and sorted(value.shape)[-2] >= 128:
      self.row, self.column = np.argsort(value.shape)[-2:]
    self.v = self.v_row = self.v_column = 0.0

  def second_moment(self, squared):
    # The one thing that T5X computes in float32 and that shows.
    decay = np.float64(np.float32(1) - np.float32(
        np.float32(self.t + 1) ** np.float32(-self.decay_rate)))
    self.t += 1

    def average(old, new):
      return decay * old + (1 - decay) * new

    if self.column is None:
      self.v = average(self.v, squared)
      return self.v
    self.v_row = average(
        self.v_row, squared.mean(axis=self.column, keepdims=True))
    self.v_column = average(
        self.v_column, squared.mean(axis=self.row, keepdims=True))
    return self.v_row * self.v_column / self.v_row.mean()

  def step(self, gradient, rate):
    g = np.float64(gradient)
    u = g / np.sqrt(self.second_moment(g ** 2 + self.epsilon1))
    if self.clip is not None:
      u /= max(1.0, rms(u) / self.clip)
    u *= rate * (min(max(rms(self.p), self.epsilon2), self.largest)
                 if self.scale else 1.0)
    if self.beta1 is not None:
      u = self.m = self.beta1 * self.m + (1 - self.beta1) * u
    decay = (self.weight_decay or 0.0) * (
        1.0 if self.exponent is None else rate ** self.exponent)
    self.p = (1 - decay) * self.p - u
    return self.p


@functools.cache
def gradients():
  """Noise with a drift, ten times smaller in the second half."""
  rng = np.random.default_rng(1)
  size = np.where(np.arange(STEPS) < STEPS // 2, 1e-2, 1e-3)
  return {name: np.float32([
      s * (rng.normal(size=x.shape) + 0.5 * np.sign(x)) for s in size])
          for name, x in START.items()}


def trajectory(definition, first_step, start, grads, rate=RATE):
  """The parameters after every step."""
  optimizer = definition.transformation(
      lambda step: jnp.float32(rate), first_step)

  def step(carry, g):
    p, state = carry
    updates, state = optimizer.update(g, state, p)
    p = optax.apply_updates(p, updates)
    return (p, state), p

  @jax.jit
  def run(p, grads):
    return jax.lax.scan(step, (p, optimizer.init(p)), grads)[1]

  return jax.device_get(run(start, grads))


def assert_follows(definition, first_step, names, rate=RATE, **settings):
  """Every step of the definition is the reference's."""
  start = {name: START[name] for name in names}
  grads = {name: gradients()[name] for name in names}
  got = trajectory(definition, first_step, start, grads, rate)
  for name in names:
    reference = Reference(start[name], first_step, **settings)
    for i, gradient in enumerate(grads[name]):
      expected = reference.step(gradient, rate)
      error = rms(got[name][i] - expected)
      assert error <= 2e-6 * rms(expected), (name, i)
      assert error <= 2e-5 * rms(expected - start[name]), (name, i)


@pytest.mark.parametrize('first_step', [0, PRETRAINED])
@pytest.mark.parametrize('weight_decay', [None, 1e-5])
@pytest.mark.parametrize('scale', [False, True])
def test_every_step_is_the_reference_step(first_step, weight_decay, scale):
  definition = adafactor.Adafactor(
      multiply_by_parameter_scale=scale, weight_decay_rate=weight_decay)
  assert_follows(definition, first_step, START,
                 scale=scale, weight_decay=weight_decay)


# One setting at a time, each changing the trajectory of a small prompt.
@pytest.mark.parametrize('arguments,settings', [
    ({'decay_rate': 0.5}, {'decay_rate': 0.5}),
    ({'step_offset': 1_000_000}, {'step_offset': 1_000_000}),
    ({'step_offset': PRETRAINED}, {'step_offset': PRETRAINED}),
    ({'epsilon1': 1e-4}, {'epsilon1': 1e-4}),
    ({'clipping_threshold': 0.25}, {'clip': 0.25}),
    ({'clipping_threshold': None}, {'clip': None}),
    ({'beta1': 0.9}, {'beta1': 0.9}),
    ({'factored': False}, {'factored': False}),
])
def test_each_setting_is_the_reference_setting(arguments, settings):
  definition = adafactor.Adafactor(
      multiply_by_parameter_scale=False, weight_decay_rate=1e-5, **arguments)
  assert_follows(definition, PRETRAINED, ['(128,)', '(130, 200)'],
                 scale=False, weight_decay=1e-5, **settings)


@pytest.mark.parametrize('arguments,settings', [
    ({'epsilon2': 5.0}, {'epsilon2': 5.0}),
    ({'max_parameter_scale': 0.25}, {'largest': 0.25}),
    ({'weight_decay_rate_lr_exponent': 2.0}, {'exponent': 2.0}),
    ({'learning_rate': 7.0}, {}),  # The trainer's is used.
])
def test_each_setting_of_the_scaled_step(arguments, settings):
  definition = adafactor.Adafactor(weight_decay_rate=1e-2, **arguments)
  assert_follows(definition, PRETRAINED, ['(128,)', '(130, 200)'],
                 scale=True, weight_decay=1e-2, **settings)


def test_scaling_can_differ_between_parameters():
  rules = adafactor.HParamMap([(r'^\(128', False), ('.', True)])
  definition = adafactor.Adafactor(multiply_by_parameter_scale=rules)
  for name, scale in (('(128,)', False), ('(130, 200)', True)):
    assert_follows(
        definition, PRETRAINED, [name], scale=scale, weight_decay=None)
  with pytest.raises(ValueError, match=r"no rule for the parameter '\(100"):
    trajectory(
        adafactor.Adafactor(multiply_by_parameter_scale=adafactor.HParamMap(
            [('nothing', True)])), 0, {'(100, 768)': START['(100, 768)']},
        {'(100, 768)': gradients()['(100, 768)']})


STACK = np.float32(np.random.default_rng(4).normal(size=(130, 3, 140)))
STACK_GRADIENTS = np.float32(
    np.random.default_rng(5).normal(size=(5, *STACK.shape)))


# Three layers in one array are three parameters: scales and clips of one layer
# do not depend on the others. Layers have gradients of very different size.
@pytest.mark.parametrize('given', ['axes', 'map'])
def test_a_stack_is_trained_layer_by_layer(given):
  size = np.float32([1.0, 30.0, 0.01])[:, None]
  stack, grads = STACK * size, STACK_GRADIENTS * size
  if given == 'axes':
    definition = adafactor.Adafactor(
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
        beta1=0.9).with_axes({'w': ('embed', 'layers', 'mlp')})
  else:
    definition = adafactor.Adafactor(beta1=0.9, factor_map=adafactor.HParamMap(
        [('w', ('row', 'batch', adafactor.FactorDim.COLUMN))]))
  whole = trajectory(definition, PRETRAINED, {'w': stack}, {'w': grads})['w']
  for layer in range(3):
    alone = trajectory(
        adafactor.Adafactor(beta1=0.9), PRETRAINED, {'w': stack[:, layer]},
        {'w': grads[:, :, layer]})['w']
    assert rms(whole[:, :, layer] - alone) <= 2e-6 * rms(alone)


@pytest.mark.parametrize('shape,axes,slots', [
    # The example of T5X: an embedding, whatever its rule says.
    ((384, 256), ('vocab', 'embed'), ((256,), (384,), (1,))),
    ((127, 256), ('vocab', 'embed'), ((1,), (1,), (127, 256))),
    ((64,), ('embed',), ((1,), (1,), (64,))),
    # Of a scanned model, at any size: 3 layers, 2 heads of 4.
    ((8, 3, 16), ('embed', 'layers', 'mlp'), ((8, 3), (3, 16), (1,))),
    ((8, 3, 2, 4), ('embed', 'layers', 'heads', 'kv'),
     ((8, 3), (3, 2, 4), (1,))),
    ((8, 3), ('embed', 'layers'), ((1,), (1,), (8, 3))),
])
def test_slots_have_the_shapes_of_t5x(shape, axes, slots):
  definition = adafactor.Adafactor(
      logical_factor_rules=adafactor.standard_logical_factor_rules())
  optimizer = definition.with_axes({'p': axes}).transformation(lambda s: 1., 0)
  found = jax.eval_shape(
      optimizer.init, {'p': jax.ShapeDtypeStruct(shape, jnp.float32)})
  p = found.slots['p']
  assert (p.v_row.shape, p.v_col.shape, p.v.shape) == slots
  assert p.m.shape == (1,)


@pytest.mark.parametrize('arguments,axes,match', [
    ({'logical_factor_rules': {'layers': adafactor.FactorDim.BATCH}},
     ('layers', 'embed', 'mlp'), "the axis 'embed' of p has no role"),
    ({'factor_map': adafactor.HParamMap([('p', ('row', 'col'))])}, None,
     'has 2 roles for p, which has 3 axes'),
    ({'factor_map': adafactor.HParamMap([('p', ('row', 'col', 'depth'))])},
     None, "'depth' is no role"),
    ({'factor_map': adafactor.HParamMap([('p', ('row', 'col', 'none'))])},
     None, 'make the latter batch axes'),
])
def test_rules_that_cannot_be_followed_are_refused(arguments, axes, match):
  definition = adafactor.Adafactor(**arguments)
  with pytest.raises(ValueError, match=match):
    if axes:
      definition = definition.with_axes({'p': axes})
    definition.transformation(lambda step: 1.0, 0).init(
        {'p': jnp.zeros((2, 3, 4))})


# The shortest axis that is factored: what is kept per parameter.
@pytest.mark.parametrize('shape,numbers', [
    ((127, 200), 127 * 200), ((128, 200), 128 + 200), ((128,), 128),
    ((100, 768), 100 * 768), ((150, 768), 150 + 768)])
def test_the_second_moment_is_factored_from_128_on(shape, numbers):
  optimizer = adafactor.Adafactor().transformation(lambda step: 1.0, 0)
  state = jax.eval_shape(optimizer.init, {'p': jnp.zeros(shape)})
  kept = sum(x.size for x in jax.tree.leaves(state) if x.size > 1)
  assert kept == numbers


# A constant gradient that drops: counting from 1.1 million, the accumulator is
# still young and the clip hides the drop; counting from zero it is old.
def test_counting_from_zero_is_another_trajectory():
  definition = adafactor.Adafactor(multiply_by_parameter_scale=False)
  name = '(100, 768)'
  absolute, relative = (
      trajectory(definition, first_step, {name: START[name]},
                 {name: gradients()[name]})[name]
      for first_step in (PRETRAINED, 0))
  last = STEPS // 2
  path = [sum(rms(step) for step in np.diff(x[last - 1:], axis=0))
          for x in (absolute, relative)]
  assert path[0] > 1.5 * path[1]


@pytest.mark.parametrize('first_step', [0, PRETRAINED])
@pytest.mark.parametrize('rate', [0.3, 1e-3, 0.0])
def test_weight_decay_is_not_multiplied_by_the_learning_rate(first_step, rate):
  decay, name = 0.01, '(128,)'
  start = {name: START[name]}
  gradient = {name: gradients()[name][:1]}
  with_decay, without = (
      trajectory(
          adafactor.Adafactor(multiply_by_parameter_scale=False,
                              weight_decay_rate=weight_decay),
          first_step, start, gradient, rate)[name][0]
      for weight_decay in (decay, None))
  np.testing.assert_allclose(
      without - with_decay, decay * START[name], rtol=1e-4, atol=1e-6)
  if not rate:
    np.testing.assert_array_equal(without, START[name])
    np.testing.assert_allclose(
        with_decay, (1 - decay) * np.float64(START[name]), rtol=1e-7)


# The rate is nonzero at one absolute step only; the parameter moves there only.
@pytest.mark.parametrize('first_step', [0, PRETRAINED])
def test_the_learning_rate_sees_the_absolute_step(first_step):
  optimizer = adafactor.Adafactor().transformation(
      lambda step: jnp.float32(step == first_step + 2), first_step)
  p = {'p': jnp.ones(4)}
  state, moved = optimizer.init(p), []
  update = jax.jit(optimizer.update)
  for _ in range(4):
    updates, state = update(p, state, p)
    moved.append(bool(np.any(updates['p'])))
  assert moved == [False, False, True, False]


def test_global_norm_clip_comes_before_the_moments():
  name = '(128,)'
  grads = gradients()[name]
  norms = np.linalg.norm(grads, axis=1, keepdims=True)
  clipped, by_hand = (
      trajectory(
          adafactor.Adafactor(global_norm_clip_threshold=threshold),
          PRETRAINED, {name: START[name]}, {name: g})[name]
      for threshold, g in ((0.05, grads),
                           (None, grads * np.minimum(1, 0.05 / norms))))
  assert np.min(norms) < 0.05 < np.max(norms)
  np.testing.assert_allclose(clipped, by_hand, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_not_finite_can_be_skipped():
  name = '(128,)'
  poisoned = gradients()[name].copy()
  poisoned[5, 7] = np.nan
  start = {name: START[name]}
  lost = trajectory(adafactor.Adafactor(), 0, start, {name: poisoned})[name]
  assert np.isfinite(lost[4]).all() and np.isnan(lost[5]).all()
  kept = trajectory(
      adafactor.Adafactor(skip_nan_updates=True), 0, start,
      {name: poisoned})[name]
  without = trajectory(
      adafactor.Adafactor(), 0, start, {name: np.delete(poisoned, 5, 0)})[name]
  np.testing.assert_array_equal(kept[5], kept[4])
  np.testing.assert_allclose(
      np.delete(kept, 5, 0), without, rtol=1e-5, atol=1e-6)


def test_standard_factor_rules_are_those_of_t5x():
  rules = adafactor.standard_logical_factor_rules()
  roles = {role: {axis for axis in rules if rules[axis] is role}
           for role in adafactor.FactorDim}
  assert roles == {
      adafactor.FactorDim.COLUMN: {
          'vocab', 'mlp', 'heads', 'kv', 'joined_kv', 'q_wi_fused',
          'o_wo_fused', 'multiquery_heads', 'kv_fused', 'mlp_activations'},
      adafactor.FactorDim.ROW: {'embed'},
      adafactor.FactorDim.BATCH: {'layers', 'stack'},
      adafactor.FactorDim.NONE: {'relpos_buckets', 'layer_norm_scale'},
  }
