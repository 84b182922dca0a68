import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from t5x import losses

V = 7
TERMS = list(itertools.product([0.0, 0.1, 0.5], [0.0, 1e-4, 0.3]))
SETTINGS = pytest.mark.parametrize('smoothing,z_loss', TERMS)
CASES = pytest.mark.parametrize('shape,smoothing,z_loss', [
    *(((3, 5), *terms) for terms in TERMS),
    ((6,), 0.1, 0.01),
    ((2, 3, 4), 0.1, 0.01),
])


def soft_targets(targets, smoothing):
  """`1 - s` for the target, the rest spread over the other classes."""
  rest = np.full(targets.shape + (V,), smoothing / (V - 1))
  np.put_along_axis(rest, targets[..., None], 1 - smoothing, axis=-1)
  return rest


def expected_loss(logits, targets, smoothing, z_loss):
  """Kullback-Leibler divergence from the soft targets, and the z term."""
  soft = soft_targets(targets, smoothing)
  log_p = scipy.special.log_softmax(logits, axis=-1)
  divergence = np.sum(scipy.special.xlogy(soft, soft) - soft * log_p, axis=-1)
  z_term = z_loss * scipy.special.logsumexp(logits, axis=-1) ** 2
  return divergence + z_term, z_term


def expected_gradient(logits, targets, smoothing, z_loss):
  """By hand: `p - q + 2 z log Z p`."""
  p = scipy.special.softmax(logits, axis=-1)
  log_z = scipy.special.logsumexp(logits, axis=-1, keepdims=True)
  return p - soft_targets(targets, smoothing) + 2 * z_loss * log_z * p


def example(shape, seed=0):
  rng = np.random.default_rng(seed)
  logits = 3 * rng.normal(size=shape + (V,)) + 2
  return logits, rng.integers(0, V, shape)


@CASES
def test_loss_is_the_float64_cross_entropy(shape, smoothing, z_loss):
  logits, targets = example(shape)
  got = jax.jit(functools.partial(
      losses.token_cross_entropy, label_smoothing=smoothing, z_loss=z_loss))(
          np.float32(logits), np.int32(targets))
  for ours, theirs in zip(
      got, expected_loss(logits, targets, smoothing, z_loss), strict=True):
    assert ours.shape == shape and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)


@CASES
def test_gradient_is_the_float64_one(shape, smoothing, z_loss):
  logits, targets = example(shape, seed=1)
  weights = np.random.default_rng(2).uniform(size=shape)

  def loss(x):
    return losses.compute_weighted_cross_entropy(
        x, np.int32(targets), np.float32(weights), smoothing, z_loss, 2.5)[0]

  expected = expected_gradient(logits, targets, smoothing, z_loss)
  np.testing.assert_allclose(
      jax.jit(jax.grad(loss))(np.float32(logits)),
      expected * weights[..., None] / 2.5, rtol=2e-5, atol=1e-6)


@SETTINGS
def test_a_distribution_as_target_agrees_but_for_its_entropy(smoothing, z_loss):
  logits, targets = example((3, 5))
  soft = soft_targets(targets, smoothing)
  loss, z_term = jax.jit(losses.cross_entropy_with_logits)(
      np.float32(logits), np.float32(soft), z_loss)
  divergence, expected_z = expected_loss(logits, targets, smoothing, z_loss)
  entropy = -np.sum(scipy.special.xlogy(soft, soft), axis=-1)
  np.testing.assert_allclose(loss, divergence + entropy, rtol=1e-5)
  np.testing.assert_allclose(z_term, expected_z, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('smoothing', [0.0, 0.05, 0.3])
def test_a_perfect_prediction_has_loss_zero_and_no_gradient(smoothing):
  targets = np.arange(V)
  logits = jnp.float32(np.log(soft_targets(targets, smoothing) + 1e-30))

  @jax.jit
  @jax.value_and_grad
  def total(x):
    return losses.compute_weighted_cross_entropy(
        x, jnp.int32(targets), label_smoothing=smoothing)[0]

  loss, gradient = total(logits)
  assert abs(loss) < 2e-6
  np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
  if smoothing:
    too_sure, _ = total(logits.at[0, 0].add(0.5))
    assert too_sure > 1e-3


# Logits far apart: no overflow, and the target's distance is the loss.
@pytest.mark.parametrize('offset', [0.0, 1e4, -1e4])
def test_large_logits_stay_finite(offset):
  logits = jnp.float32([[50.0, 0.0, -50.0]]) + jnp.float32(offset)
  loss, _ = losses.token_cross_entropy(logits, jnp.int32([2]))
  np.testing.assert_allclose(loss, [100.0], rtol=1e-4)


@pytest.mark.parametrize('shape,factor,weighted', [
    ((6,), None, False), ((6,), 2.5, True), ((3, 5), None, True),
    ((3, 5), 4, True), ((3, 5), 4, False)])
def test_sums_are_weighted_and_divided(shape, factor, weighted):
  logits, targets = example(shape, seed=3)
  weights = np.random.default_rng(4).integers(0, 3, shape)
  loss, z_term, weight_sum = jax.jit(functools.partial(
      losses.compute_weighted_cross_entropy, label_smoothing=0.1, z_loss=0.01,
      loss_normalizing_factor=factor))(
          np.float32(logits), np.int32(targets),
          np.int32(weights) if weighted else None)
  used = weights if weighted else np.ones(shape)
  per_token, z_per_token = expected_loss(logits, targets, 0.1, 0.01)
  np.testing.assert_allclose(
      loss, np.sum(per_token * used) / (factor or 1), rtol=1e-5)
  np.testing.assert_allclose(
      z_term, np.sum(z_per_token * used) / (factor or 1), rtol=1e-5)
  assert float(weight_sum) == used.sum()


@pytest.mark.parametrize('logits,targets', [
    ((2, 3, V), (3,)), ((3, V), (3, 1)), ((V,), (2,)), ((2, V), (2, 3, 1))])
def test_rank_mismatch_is_refused_with_both_shapes(logits, targets):
  with pytest.raises(ValueError, match=r'logits .* one axis more than targets'):
    losses.compute_weighted_cross_entropy(
        jnp.zeros(logits), jnp.zeros(targets, jnp.int32))


# Two rows of four tokens; zeros are padding. Row 0: 3 tokens, row 1: 2.
TARGETS = np.array([[5, 6, 1, 0], [3, 1, 0, 0]])


def batch_of(targets, **more):
  return {'decoder_target_tokens': jnp.int32(targets),
          **{name: jnp.asarray(x) for name, x in more.items()}}


@pytest.mark.parametrize('name,factor,weights', [
    ('NUM_REAL_TARGET_TOKENS', 5.0, TARGETS > 0),
    ('NUM_TOTAL_TARGET_TOKENS', 8.0, TARGETS > 0),
    ('AVERAGE_PER_SEQUENCE', 2.0,
     [[1 / 3, 1 / 3, 1 / 3, 0], [1 / 2, 1 / 2, 0, 0]]),
])
@pytest.mark.parametrize('spell', [
    str, str.lower, str.title,
    lambda name: losses.SpecialLossNormalizingFactor[name]])
def test_normaliser_by_name_and_member(name, factor, weights, spell):
  got, got_weights = losses.get_loss_normalizing_factor_and_weights(
      spell(name), batch_of(TARGETS))
  np.testing.assert_allclose(got, factor, rtol=1e-6)
  np.testing.assert_allclose(got_weights, np.float32(weights), rtol=1e-6)


# Given weights take the place of the mask of real tokens.
@pytest.mark.parametrize('name,factor,weights', [
    ('NUM_REAL_TARGET_TOKENS', 4.5, [[1, 0, 3, 0], [0.5, 0, 0, 0]]),
    ('NUM_TOTAL_TARGET_TOKENS', 8.0, [[1, 0, 3, 0], [0.5, 0, 0, 0]]),
    ('AVERAGE_PER_SEQUENCE', 2.0, [[0.25, 0, 0.75, 0], [1, 0, 0, 0]]),
])
def test_normaliser_uses_the_given_weights(name, factor, weights):
  given = np.float32([[1, 0, 3, 0], [0.5, 0, 0, 0]])
  got, got_weights = losses.get_loss_normalizing_factor_and_weights(
      name, batch_of(TARGETS, decoder_loss_weights=given))
  np.testing.assert_allclose(got, factor, rtol=1e-6)
  np.testing.assert_allclose(got_weights, weights, rtol=1e-6)


@pytest.mark.parametrize('factor', [None, 3, 0.25])
def test_a_constant_normaliser_passes_through(factor):
  got = losses.get_loss_normalizing_factor_and_weights(
      factor, batch_of(TARGETS, decoder_loss_weights=TARGETS))
  assert got[0] == factor
  np.testing.assert_array_equal(got[1], TARGETS)
  assert losses.get_loss_normalizing_factor_and_weights(
      factor, batch_of(TARGETS)) == (factor, None)


def test_a_row_without_weight_counts_for_nothing():
  got, weights = losses.get_loss_normalizing_factor_and_weights(
      'AVERAGE_PER_SEQUENCE', batch_of([[4, 1, 0], [0, 0, 0]]))
  assert got == 1.0
  np.testing.assert_array_equal(weights, [[0.5, 0.5, 0], [0, 0, 0]])


@jax.jit
def average_loss(logits, batch):
  factor, weights = losses.get_loss_normalizing_factor_and_weights(
      'AVERAGE_PER_SEQUENCE', batch)
  return losses.compute_weighted_cross_entropy(
      logits, batch['decoder_target_tokens'], weights, 0.1, 0.01, factor)[0]


# Three examples of 2, 3 and 4 tokens: packed  [a a b b b . .], [c c c c . . .].
@pytest.mark.parametrize('half_weight', [False, True])
def test_packed_average_is_the_unpacked_one(half_weight):
  lengths, places = (2, 3, 4), ((0, 0), (0, 2), (1, 0))
  rng = np.random.default_rng(5)
  scale = rng.uniform(0.2, 2, (3, 7)) if half_weight else np.ones((3, 7))
  logits, targets = rng.normal(size=(3, 7, V)), rng.integers(1, V, (3, 7))
  real = np.arange(7) < np.array(lengths)[:, None]
  targets, scale = targets * real, np.float32(scale * real)

  packed = [np.zeros((2, 7, V)), *(np.zeros((2, 7)) for _ in range(3))]
  for example_id, (n, (row, start)) in enumerate(
      zip(lengths, places, strict=True)):
    where = (row, slice(start, start + n))
    segment = np.full((3, 7), 1 + (start > 0))
    for whole, part in zip(
        packed, (logits, targets, scale, segment), strict=True):
      whole[where] = part[example_id, :n]

  unpacked_loss = average_loss(
      jnp.float32(logits), batch_of(targets, decoder_loss_weights=scale))
  packed_loss = average_loss(jnp.float32(packed[0]), batch_of(
      packed[1], decoder_loss_weights=packed[2],
      decoder_segment_ids=np.int32(packed[3])))
  per_token, _ = expected_loss(logits, targets, 0.1, 0.01)
  by_hand = np.mean(np.sum(per_token * scale, -1) / np.sum(scale, -1))
  np.testing.assert_allclose(unpacked_loss, by_hand, rtol=1e-5)
  np.testing.assert_allclose(packed_loss, by_hand, rtol=1e-5)


def test_unknown_normaliser_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match=r"'PER_MOON'.*AVERAGE_PER_SEQUENCE"):
    losses.get_loss_normalizing_factor_and_weights(
        'PER_MOON', batch_of(TARGETS))
