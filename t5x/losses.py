"""Cross entropy with z-loss and label smoothing, and how it is normalised.

Colin Raffel et al., "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer", section 2.1, trains with the summed token loss; the
z-loss term keeps the logits' normaliser near one.
"""

from collections.abc import Mapping
import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class SpecialLossNormalizingFactor(enum.Enum):
  """Normalisers that depend on the batch instead of being a constant."""

  NUM_REAL_TARGET_TOKENS = 1
  NUM_TOTAL_TARGET_TOKENS = 2
  AVERAGE_PER_SEQUENCE = 3


LossNormalizingFactor = float | int | str | SpecialLossNormalizingFactor | None


def _negative_log_likelihood(
    logits: Float[Array, '*rows V'],
    target_score: Float[Array, '*rows'],
    z_loss: float,
) -> tuple[Float[Array, '*rows'], Float[Array, '*rows']]:
  """`log Z - target_score + z_loss * (log Z)^2` and its last term."""
  log_z = jax.nn.logsumexp(logits, axis=-1)
  z_term = z_loss * jnp.square(log_z)
  return log_z - target_score + z_term, z_term


def cross_entropy_with_logits(
    logits: Float[Array, '*rows V'],
    targets: Float[Array, '*rows V'],
    z_loss: float = 0.0,
) -> tuple[Float[Array, '*rows'], Float[Array, '*rows']]:
  """Cross entropy against a distribution over the vocabulary.

  `loss = -sum_v targets_v log softmax(logits)_v + z_loss * (log Z)^2`

  Args:
    logits: unnormalised scores.
    targets: probabilities that sum to one over the last axis (one-hot or soft).
    z_loss: weight of the squared log normaliser.

  Returns:
    The loss with its z term, and the z term alone, in nats per row.
  """
  target_score = jnp.sum(targets * logits, axis=-1)
  return _negative_log_likelihood(logits, target_score, z_loss)


def token_cross_entropy(
    logits: Float[Array, '*rows V'],
    targets: Int[Array, '*rows'],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Float[Array, '*rows'], Float[Array, '*rows']]:
  """Cross entropy per token, without a one-hot copy of the targets.

  With smoothing `s` the target has probability `1 - s` and every other entry
  `s / (V - 1)`; the entropy of that distribution is subtracted, so that a
  perfect prediction has loss zero.

  Args:
    logits: unnormalised scores.
    targets: class ids in `[0, V)`.
    label_smoothing: probability mass taken from the target, in `[0, 1)`.
    z_loss: weight of the squared log normaliser.

  Returns:
    The loss with its z term, and the z term alone, in nats per token.

  Raises:
    ValueError: if `targets` does not have one axis fewer than `logits`.
  """
  if logits.ndim != targets.ndim + 1:
    raise ValueError(
        f'logits {logits.shape} need one axis more than targets '
        f'{targets.shape}: the last one, over the vocabulary.')
  score = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  entropy = jnp.float32(0.0)
  if label_smoothing:
    confidence = 1.0 - label_smoothing
    low = label_smoothing / (logits.shape[-1] - 1)
    score = (confidence - low) * score + low * jnp.sum(logits, axis=-1)
    entropy = -(confidence * jnp.log(confidence)
                + (logits.shape[-1] - 1) * low * jnp.log(low + 1e-20))
  loss, z_term = _negative_log_likelihood(logits, score, z_loss)
  return loss - entropy, z_term


def compute_weighted_cross_entropy(
    logits: Float[Array, '*rows V'],
    targets: Int[Array, '*rows'],
    weights: Float[Array, '*rows'] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    loss_normalizing_factor: float | Array | None = None,
) -> tuple[Float[Array, ''], Float[Array, ''], Float[Array, '']]:
  """Summed, weighted cross entropy of a batch.

  Args:
    logits: unnormalised scores.
    targets: class ids.
    weights: weight per token; None counts every token once.
    label_smoothing: see `token_cross_entropy`.
    z_loss: see `token_cross_entropy`.
    loss_normalizing_factor: divides the sums; None leaves them as sums.

  Returns:
    The summed loss, the summed z term (both divided by the factor) and the
    sum of the weights.
  """
  loss, z_term = token_cross_entropy(
      logits, targets, label_smoothing=label_smoothing, z_loss=z_loss)
  weight_sum = jnp.asarray(targets.size, loss.dtype)
  if weights is not None:
    weights = weights.astype(loss.dtype)
    loss, z_term = loss * weights, z_term * weights
    weight_sum = jnp.sum(weights)
  if loss_normalizing_factor is not None:
    loss, z_term = (x / loss_normalizing_factor for x in (loss, z_term))
  return jnp.sum(loss), jnp.sum(z_term), weight_sum


def _sum_weights_per_segment(
    segment_ids: Int[Array, 'B S'],
    weights: Float[Array, 'B S'],
) -> Float[Array, 'B S']:
  """For every token the summed weight of the packed example it belongs to."""
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  return jnp.sum(jnp.where(same, weights[:, None, :], 0.0), axis=-1)


def get_loss_normalizing_factor_and_weights(
    loss_normalizing_factor: LossNormalizingFactor,
    batch: Mapping[str, Array],
) -> tuple[float | Array | None, Float[Array, 'B S'] | None]:
  """Resolves a normaliser, by constant or by name, for one batch.

  Args:
    loss_normalizing_factor: None (plain sum), a number, or a member or the
      case-insensitive name of `SpecialLossNormalizingFactor`.
    batch: needs `decoder_target_tokens [B, S]`; reads `decoder_loss_weights`
      and `decoder_segment_ids` where present.

  Returns:
    What divides the summed loss (None: nothing), and the token weights.

  Raises:
    ValueError: for an unknown name.
  """
  weights = batch.get('decoder_loss_weights')
  if weights is not None:
    weights = weights.astype(jnp.float32)
  factor = loss_normalizing_factor
  if isinstance(factor, str):
    names = SpecialLossNormalizingFactor.__members__
    if factor.upper() not in names:
      raise ValueError(
          f'LOSS_NORMALIZING_FACTOR is {factor!r}; expected a number, None or '
          f'one of {", ".join(names)}.')
    factor = names[factor.upper()]
  if not isinstance(factor, SpecialLossNormalizingFactor):
    return factor, weights

  targets = batch['decoder_target_tokens']
  if weights is None:
    weights = jnp.asarray(targets > 0, jnp.float32)
  if factor is SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS:
    return jnp.sum(weights), weights
  if factor is SpecialLossNormalizingFactor.NUM_TOTAL_TARGET_TOKENS:
    return float(targets.size), weights
  if 'decoder_segment_ids' in batch:
    per_token = _sum_weights_per_segment(batch['decoder_segment_ids'], weights)
  else:
    per_token = jnp.sum(weights, axis=-1, keepdims=True)
  weights = weights / jnp.where(per_token > 0, per_token, 1.0)
  return jnp.sum(weights), weights
