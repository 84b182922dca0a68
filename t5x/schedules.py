"""Learning-rate schedules written as T5X's factor strings."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Factor = Callable[[Float[Array, '']], Float[Array, '']]


def create_learning_rate_scheduler(
    factors: str = 'constant * linear_warmup * rsqrt_decay',
    base_learning_rate: float = 0.5,
    warmup_steps: int = 1000,
    decay_factor: float = 0.5,
    steps_per_decay: int = 20_000,
    steps_per_cycle: int = 100_000,
    step_offset: int = 0,
    min_learning_rate: float = 1e-8,
) -> Callable[[Int[Array, '']], Float[Array, '']]:
  """A schedule that is a product of named factors.

  With `s = max(0, step - step_offset)`, `w = warmup_steps` and `b =
  base_learning_rate`:

    constant                b
    linear_warmup           min(1, s / w)
    linear_decay            b min(s / w, 1 + decay_factor (w - s))
    rsqrt_decay             1 / sqrt(max(s, w))
    rsqrt_normalized_decay  sqrt(w) / sqrt(max(s, w))
    decay_every             decay_factor ^ floor(s / steps_per_decay)
    cosine_decay            (1 + cos(pi (p mod 1))) / 2, not below 0,
                            with p = max(0, (s - w) / steps_per_cycle)

  Args:
    factors: names joined by `*`, for instance `'constant * rsqrt_decay'`.
    base_learning_rate: see `constant` and `linear_decay`.
    warmup_steps: length of the warm-up, in steps.
    decay_factor: see `linear_decay` and `decay_every`.
    steps_per_decay: see `decay_every`.
    steps_per_cycle: period of `cosine_decay`, in steps.
    step_offset: step at which the schedule begins.
    min_learning_rate: the result is never below it.

  Returns:
    A function from absolute step to learning rate, float32.

  Raises:
    ValueError: for a factor that is not in the table.
  """
  b, w = base_learning_rate, float(warmup_steps)
  table: dict[str, Factor] = {
      'constant': lambda s: jnp.full_like(s, b),
      'linear_warmup': lambda s: jnp.minimum(1.0, s / w),
      'linear_decay': lambda s: b * jnp.minimum(
          s / w, 1.0 + decay_factor * (w - s)),
      'rsqrt_decay': lambda s: 1.0 / jnp.sqrt(jnp.maximum(s, w)),
      'rsqrt_normalized_decay': lambda s: jnp.sqrt(
          w / jnp.maximum(s, w)),
      'decay_every': lambda s: decay_factor ** jnp.floor(s / steps_per_decay),
      'cosine_decay': lambda s: _cosine(
          jnp.maximum(0.0, (s - w) / steps_per_cycle)),
  }
  names = [name.strip() for name in factors.split('*')]
  if unknown := [name for name in names if name not in table]:
    raise ValueError(
        f'create_learning_rate_scheduler: unknown factor {unknown[0]!r} in '
        f'{factors!r}; expected a product of {", ".join(table)}.')

  def learning_rate(step: Int[Array, '']) -> Float[Array, '']:
    s = jnp.maximum(0.0, jnp.asarray(step, jnp.float32) - float(step_offset))
    rate = jnp.float32(1.0)
    for name in names:
      rate = rate * table[name](s)
    return jnp.maximum(rate, min_learning_rate)

  return learning_rate


def _cosine(progress: Float[Array, '']) -> Float[Array, '']:
  """Half a cosine per cycle, from one down to zero."""
  return jnp.maximum(0.0, 0.5 * (1.0 + jnp.cos(jnp.pi * (progress % 1.0))))
