"""The metrics of one training batch, under T5X's names."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from t5x import metrics as metrics_lib

MetricsMap = dict[str, metrics_lib.Metric]
_PACKED = '_segment_ids'


def segment_ids(batch: Mapping[str, Array]) -> dict[str, Int[Array, 'B L']]:
  """Which example each place of a batch belongs to; 0 is padding.

  Args:
    batch: model features.

  Returns:
    The segments of a packed batch, by `encoder` and `decoder`. Else ones at the
    tokens of `encoder_input_tokens` and `decoder_target_tokens`.
  """
  packed = {name.removesuffix(_PACKED): ids for name, ids in batch.items()
            if name.endswith(_PACKED)}
  return packed or {
      name: jnp.asarray(batch[name] > 0, jnp.int32)
      for name in ('encoder_input_tokens', 'decoder_target_tokens')
      if name in batch}


def count_packed_examples(ids: Int[Array, 'B L']) -> Int[Array, '']:
  """How many examples a batch holds.

  A row of segments 1 1 3 3 0 0 holds two; numbers may be left out, as not every
  example has every feature.

  Args:
    ids: segments of one feature.

  Returns:
    The number of places where a segment begins.
  """
  before = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)))
  return jnp.sum((ids != before) & (ids != 0), dtype=jnp.int32)


def _occupancy(
    mask: Float[Array, 'B S'], segments: Mapping[str, Int[Array, 'B L']]
) -> MetricsMap:
  """How much of a batch is real, per feature and altogether."""
  average = metrics_lib.Average
  real = {name: jnp.sum(ids != 0, dtype=jnp.float32)
          for name, ids in segments.items()}
  sizes = {name: float(ids.size) for name, ids in segments.items()}
  metrics: MetricsMap = {
      f'non_padding_fraction/{name}': average(real[name], sizes[name])
      for name in segments}
  metrics |= {
      f'effective_batch_size/{name}': metrics_lib.AveragePerStep(
          total=count_packed_examples(ids).astype(jnp.float32))
      for name, ids in segments.items()}
  return metrics | {
      'non_padding_fraction/loss_weights': average(
          jnp.sum(mask), float(mask.size)),
      'non_padding_fraction/overall': average(
          sum(real.values(), jnp.float32(0.0)), sum(sizes.values()))}


def compute_base_metrics(
    logits: Float[Array, 'B S V'],
    targets: Int[Array, 'B S'],
    mask: Float[Array, 'B S'],
    loss: Float[Array, ''],
    z_loss: Float[Array, ''] | None = None,
    segment_ids: Mapping[str, Int[Array, 'B L']] | None = None,
) -> MetricsMap:
  """T5X's training metrics of one batch, as mergeable sums.

  Args:
    logits: scores of the target tokens.
    targets: the target tokens.
    mask: weight of every target token.
    loss: summed loss with its z term.
    z_loss: summed z term.
    segment_ids: per feature which example each place belongs to, 0 being
      padding; None leaves out what depends on it.

  Returns:
    From T5X's name to metric.
  """
  weight_sum = jnp.sum(mask)
  num_tokens = float(targets.size)
  right = jnp.argmax(logits, axis=-1) == targets
  average, rate = metrics_lib.Average, metrics_lib.TimeRate
  metrics: MetricsMap = {
      'accuracy': average(jnp.sum(jnp.where(right, mask, 0.0)), weight_sum),
      'loss': metrics_lib.AveragePerStep(total=loss),
      'loss_per_nonpadding_target_token': average(loss, weight_sum),
      'loss_per_all_target_tokens': average(loss, num_tokens),
      'timing/steps_per_second': metrics_lib.StepsPerTime(),
      'timing/seqs_per_second': rate(numerator=float(targets.shape[0])),
      'timing/target_tokens_per_second': rate(numerator=num_tokens),
  }
  if z_loss is not None:
    metrics |= {
        'z_loss': metrics_lib.AveragePerStep(total=z_loss),
        'z_loss_per_all_target_tokens': average(z_loss, num_tokens),
        'cross_ent_loss': metrics_lib.AveragePerStep(total=loss - z_loss),
        'cross_ent_loss_per_all_target_tokens': average(
            loss - z_loss, num_tokens),
    }
  if segment_ids is not None:
    metrics |= _occupancy(mask, segment_ids)
  return metrics
