"""T5X's Adafactor settings on top of `optax.adafactor`.

Noam Shazeer and Mitchell Stern, "Adafactor: Adaptive Learning Rates with
Sublinear Memory Cost", ICML 2018. What T5X adds to the paper is the step that
the second-moment decay sees: the absolute step of the run, pretraining
included. At step 1,100,000 the decay is 0.999985, so the accumulator of a fresh
prompt behaves like Adagrad's sum, and the clip at RMS 1 stays active for about
the first 68,000 steps. Counting from zero is another algorithm.
"""

from collections.abc import Callable, Mapping
import dataclasses
import enum

import jax.numpy as jnp
import optax
from t5x import optimizers


class FactorDim(enum.Enum):
  """How the second moment of one parameter axis is stored."""

  NONE = 'none'
  BATCH = 'batch'
  ROW = 'row'
  COLUMN = 'column'


FactorRules = Mapping[str, FactorDim]


def standard_logical_factor_rules() -> FactorRules:
  """T5X's table from logical axis to the role it has in factoring."""
  columns = ('vocab', 'mlp', 'heads', 'kv', 'joined_kv', 'q_wi_fused',
             'o_wo_fused', 'multiquery_heads', 'kv_fused', 'mlp_activations')
  return {
      **{axis: FactorDim.COLUMN for axis in columns},
      'embed': FactorDim.ROW,
      'relpos_buckets': FactorDim.NONE,
      'layer_norm_scale': FactorDim.NONE,
      'layers': FactorDim.BATCH,
      'stack': FactorDim.BATCH,
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(optimizers.OptimizerDef):
  """Adafactor with T5X's arguments, defaults and absolute step.

  With `g` the gradient, `t` the absolute step minus `step_offset` and `lr` the
  trainer's learning rate:

    v = b v + (1 - b) (g^2 + epsilon1),        b = 1 - (t + 1)^-decay_rate
    u = g / sqrt(v);  u = u / max(1, RMS(u) / clipping_threshold)
    p = (1 - weight_decay_rate) p - lr u        (lr RMS(p) u with scaling on)

  `v` is factored over the two largest axes when both have at least
  `min_dim_size_to_factor` entries. T5X ignores `logical_factor_rules` for
  parameters of one or two axes and so does this; for more axes (scanned layers)
  the two largest are factored and the rest are batch axes, which is what the
  standard rules say, but the RMS clip is taken over the whole stacked array.

  Attributes:
    decay_rate: exponent of the second-moment decay.
    step_offset: subtracted from the absolute step.
    multiply_by_parameter_scale: multiply the step by `max(RMS(p), 1e-3)`.
    beta1: momentum; None switches it off.
    clipping_threshold: largest RMS of an update; None switches it off.
    weight_decay_rate: decay per step, not multiplied by the learning rate.
    factored: factor the second moment where the axes are long enough.
    min_dim_size_to_factor: shortest axis that is factored.
    epsilon1: added to the squared gradient.
    dtype_momentum: dtype of the momentum.
    global_norm_clip_threshold: clips the gradients' global norm first.
    skip_nan_updates: leave parameters and state alone at a step whose update is
      not finite. The trainer stops at such a step anyway.
    logical_factor_rules: accepted for T5X's gin files; see above.
  """

  decay_rate: float = 0.8
  step_offset: int = 0
  multiply_by_parameter_scale: bool = True
  beta1: float | None = None
  clipping_threshold: float | None = 1.0
  weight_decay_rate: float | None = None
  factored: bool = True
  min_dim_size_to_factor: int = 128
  epsilon1: float = 1e-30
  dtype_momentum: str = 'float32'
  global_norm_clip_threshold: float | None = None
  skip_nan_updates: bool = False
  logical_factor_rules: FactorRules | None = None

  def transformation(
      self, learning_rate: Callable, first_step: int
  ) -> optax.GradientTransformation:
    """See base class: both the decay and the rate see the absolute step."""
    update = optax.adafactor(
        learning_rate=lambda count: learning_rate(count + first_step),
        min_dim_size_to_factor=self.min_dim_size_to_factor,
        decay_rate=self.decay_rate,
        decay_offset=self.step_offset - first_step,
        multiply_by_parameter_scale=self.multiply_by_parameter_scale,
        clipping_threshold=self.clipping_threshold,
        momentum=self.beta1,
        dtype_momentum=jnp.dtype(self.dtype_momentum),
        weight_decay_rate=self.weight_decay_rate,
        eps=self.epsilon1,
        factored=self.factored,
    )
    if self.global_norm_clip_threshold is not None:
      clip = optax.clip_by_global_norm(self.global_norm_clip_threshold)
      update = optax.chain(clip, update)
    if self.skip_nan_updates:
      update = optax.apply_if_finite(update, max_consecutive_errors=2**31 - 1)
    return update
