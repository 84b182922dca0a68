import jax.numpy as jnp
import numpy as np
import pytest
from t5x import schedules

B, W = 0.5, 100.0
OPTIONS = {'base_learning_rate': B, 'warmup_steps': 100, 'decay_factor': 0.01,
           'steps_per_decay': 50, 'steps_per_cycle': 400}


# The table of T5X, written out for each factor.
@pytest.mark.parametrize('factors,expected', [
    ('constant', lambda s: B),
    ('linear_warmup', lambda s: min(1.0, s / W)),
    ('linear_decay', lambda s: B * min(s / W, 1 + 0.01 * (W - s))),
    ('rsqrt_decay', lambda s: 1 / np.sqrt(max(s, W))),
    ('rsqrt_normalized_decay', lambda s: np.sqrt(W) / np.sqrt(max(s, W))),
    ('decay_every', lambda s: 0.01 ** (s // 50)),
    ('cosine_decay', lambda s: max(
        0, 0.5 * (1 + np.cos(np.pi * (max(0, (s - W) / 400) % 1))))),
    ('constant * linear_warmup * rsqrt_decay',
     lambda s: B * min(1, s / W) / np.sqrt(max(s, W))),
])
@pytest.mark.parametrize('step', [0, 1, 49, 50, 99, 100, 101, 150, 499, 1000])
def test_factor_follows_its_formula(factors, expected, step):
  fn = schedules.create_learning_rate_scheduler(factors, **OPTIONS)
  rate = fn(jnp.int32(step))
  assert rate.dtype == jnp.float32
  np.testing.assert_allclose(
      rate, max(expected(step), 1e-8), rtol=2e-6, atol=1e-7)


def test_offset_shifts_the_schedule_and_is_never_negative():
  plain = schedules.create_learning_rate_scheduler('linear_warmup', **OPTIONS)
  shifted = schedules.create_learning_rate_scheduler(
      'linear_warmup', step_offset=1000, **OPTIONS)
  assert shifted(jnp.int32(1030)) == plain(jnp.int32(30))
  assert shifted(jnp.int32(5)) == jnp.float32(1e-8)


def test_unknown_factor_is_named():
  with pytest.raises(ValueError, match=r"'konstant'.*constant, linear_warmup"):
    schedules.create_learning_rate_scheduler('konstant * linear_warmup')
