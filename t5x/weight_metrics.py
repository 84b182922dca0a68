"""How large parameters, their gradients and their updates are, one by one."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float
import optax
from t5x import metrics as metrics_lib

Parameters = Mapping[str, Array]


class WeightMetricsComputer:
  """Metrics of every trainable parameter, for `trainer.Trainer` in gin.

  With `rms(x) = sqrt(mean(x^2))`, per parameter with its path as the end of the
  name: `weight_rms`, `weight_max` (of magnitudes), `weight_gradient_rms`,
  `weight_update_rms` and `weight_update_divided_by_weight_rms`, and
  `weight_gradient_norm` over all of them. Rows hold averages over their steps.
  """

  def compute_metrics(
      self, gradients: Parameters, before: Parameters, updates: Parameters
  ) -> dict[str, metrics_lib.Metric]:
    """Metrics of one step; parameters are as they were before it.

    Args:
      gradients: of the trainable parameters, by path.
      before: the trainable parameters.
      updates: what is added to them.

    Returns:
      Metrics by name.
    """
    measures: Mapping[str, Callable[[str], Array]] = {
        'weight_rms': lambda path: _rms(before[path]),
        'weight_max': lambda path: jnp.max(jnp.abs(before[path])),
        'weight_gradient_rms': lambda path: _rms(gradients[path]),
        'weight_update_rms': lambda path: _rms(updates[path]),
        'weight_update_divided_by_weight_rms': lambda path: (
            _rms(updates[path]) / _rms(before[path])),
    }
    totals = {f'{name}/{path}': measure(path).astype(jnp.float32)
              for name, measure in measures.items() for path in before}
    totals['weight_gradient_norm'] = optax.tree.norm(gradients)
    return {name: metrics_lib.AveragePerStep(total=total)
            for name, total in totals.items()}


def _rms(x: Array) -> Float[Array, '']:
  """Root of the mean square, in float32."""
  return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
