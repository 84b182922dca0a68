"""What a model does with a batch: loss, prediction, score."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from t5x import decoding
from t5x import losses
from t5x import metrics as metrics_lib
from t5x import optimizers

Batch = Mapping[str, Array]
Params = Mapping[str, Any]
MetricsMap = dict[str, metrics_lib.Metric]


class BaseModel(abc.ABC):
  """A loss over a batch, and the optimiser that is to lower it."""

  # Name of the SeqIO converter that makes this model's batches.
  FEATURE_CONVERTER = ''

  def __init__(
      self,
      optimizer_def: optimizers.OptimizerDef,
      input_vocabulary: Any,
      output_vocabulary: Any,
  ):
    self.optimizer_def = optimizer_def
    self.input_vocabulary = input_vocabulary
    self.output_vocabulary = output_vocabulary

  @abc.abstractmethod
  def get_initial_variables(
      self, rng: Array, input_shapes: Mapping[str, tuple[int, ...]]
  ) -> Mapping[str, Any]:
    """Fresh variables, parameters boxed with their logical axes."""

  @abc.abstractmethod
  def loss_fn(
      self, params: Params, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Float[Array, ''], MetricsMap]:
    """The loss to minimise and its metrics; without a key no dropout."""

  @abc.abstractmethod
  def predict_batch_with_aux(
      self, params: Params, batch: Batch, rng: Array | None = None
  ) -> tuple[Any, Mapping[str, Any]]:
    """Predictions for a batch and what else is known of them."""

  @abc.abstractmethod
  def score_batch(self, params: Params, batch: Batch) -> Float[Array, ' B']:
    """Log likelihood of every row's targets."""

  def eval_fn(
      self, params: Params, batch: Batch
  ) -> tuple[Float[Array, ''], MetricsMap]:
    """The loss without dropout."""
    return self.loss_fn(params, batch, dropout_rng=None)

  def predict_batch(
      self, params: Params, batch: Batch, rng: Array | None = None) -> Any:
    """Predictions for a batch."""
    return self.predict_batch_with_aux(params, batch, rng)[0]


def compute_base_metrics(
    logits: Float[Array, 'B S V'],
    targets: Int[Array, 'B S'],
    mask: Float[Array, 'B S'],
    loss: Float[Array, ''],
    z_loss: Float[Array, ''] | None = None,
) -> MetricsMap:
  """T5X's training metrics of one batch, as mergeable sums.

  Args:
    logits: scores of the target tokens.
    targets: the target tokens.
    mask: weight of every target token.
    loss: summed loss with its z term.
    z_loss: summed z term.

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
  return metrics


def _non_padding_fractions(batch: Batch) -> MetricsMap:
  """How much of a batch is real tokens."""
  return {
      f'non_padding_fraction/{name}': metrics_lib.Average(
          jnp.sum(batch[name] > 0, dtype=jnp.float32), float(batch[name].size))
      for name in ('encoder_input_tokens', 'decoder_target_tokens')
      if name in batch
  }


class EncoderDecoderModel(BaseModel):
  """An encoder-decoder trained on target tokens given input tokens."""

  FEATURE_CONVERTER = 'EncDecFeatureConverter'

  def __init__(
      self,
      module: nn.Module,
      input_vocabulary: Any,
      output_vocabulary: Any,
      optimizer_def: optimizers.OptimizerDef,
      decode_fn: Callable[..., Any] = decoding.beam_search,
      label_smoothing: float = 0.0,
      z_loss: float = 0.0,
      loss_normalizing_factor: losses.LossNormalizingFactor = None,
  ):
    """Binds a network to vocabularies, an optimiser and a loss.

    Args:
      module: a `t5x.examples.t5.network.Transformer` or its like.
      input_vocabulary: SeqIO vocabulary of the inputs.
      output_vocabulary: SeqIO vocabulary of the targets; gives the end token.
      optimizer_def: what is trained, and how.
      decode_fn: a strategy of `t5x.decoding`.
      label_smoothing: see `t5x.losses`.
      z_loss: see `t5x.losses`.
      loss_normalizing_factor: see `t5x.losses`; None leaves the loss a sum
        over tokens, which only suits optimisers that ignore its scale.
    """
    super().__init__(optimizer_def, input_vocabulary, output_vocabulary)
    self.module = module
    self.decode_fn = decode_fn
    self._label_smoothing = label_smoothing
    self._z_loss = z_loss
    self._loss_normalizing_factor = loss_normalizing_factor

  def get_initial_variables(
      self, rng: Array, input_shapes: Mapping[str, tuple[int, ...]]
  ) -> Mapping[str, Any]:
    """See base class."""
    tokens: dict[str, Any] = {
        name: jnp.ones(input_shapes[name], jnp.int32)
        for name in ('encoder_input_tokens', 'decoder_input_tokens',
                     'decoder_target_tokens')}
    return self.module.init(rng, **tokens, enable_dropout=False)

  def _compute_logits(
      self, params: Params, batch: Batch, dropout_rng: Array | None = None
  ) -> Float[Array, 'B S V']:
    """Scores of the target tokens; hook for models that change the call."""
    optional: dict[str, Any] = {
        name: batch[name]
        for name in ('encoder_segment_ids', 'decoder_segment_ids',
                     'encoder_positions', 'decoder_positions')
        if name in batch}
    logits = self.module.apply(
        {'params': params},
        batch['encoder_input_tokens'],
        batch['decoder_input_tokens'],
        batch['decoder_target_tokens'],
        **optional,
        enable_dropout=dropout_rng is not None,
        rngs=None if dropout_rng is None else {'dropout': dropout_rng})
    return cast(Array, logits)

  def loss_fn(
      self, params: Params, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Float[Array, ''], MetricsMap]:
    """See base class; the loss is `losses.compute_weighted_cross_entropy`."""
    logits = self._compute_logits(params, batch, dropout_rng)
    factor, weights = losses.get_loss_normalizing_factor_and_weights(
        self._loss_normalizing_factor, batch)
    targets = batch['decoder_target_tokens']
    if weights is None:
      weights = jnp.ones(targets.shape, jnp.float32)
    loss, z_loss, _ = losses.compute_weighted_cross_entropy(
        logits, targets, weights, self._label_smoothing, self._z_loss, factor)
    metrics = self._compute_metrics(
        logits, targets, weights, loss, z_loss,
        batch.get('decoder_segment_ids'))
    return loss, metrics | _non_padding_fractions(batch)

  def _compute_metrics(
      self,
      logits: Float[Array, 'B S V'],
      targets: Int[Array, 'B S'],
      mask: Float[Array, 'B S'],
      loss: Float[Array, ''],
      z_loss: Float[Array, ''] | None = None,
      segment_ids: Int[Array, 'B S'] | None = None,
  ) -> MetricsMap:
    """Metrics of the logits; hook for models with more of them."""
    del segment_ids
    return compute_base_metrics(logits, targets, mask, loss, z_loss)

  def score_batch(self, params: Params, batch: Batch) -> Float[Array, ' B']:
    """See base class: the summed log probability of the target tokens."""
    logits = self._compute_logits(params, batch)
    nats, _ = losses.token_cross_entropy(logits, batch['decoder_target_tokens'])
    weights = batch.get(
        'decoder_loss_weights', batch['decoder_target_tokens'] > 0)
    return -jnp.sum(nats * weights.astype(nats.dtype), axis=-1)

  def predict_batch_with_aux(
      self,
      params: Params,
      batch: Batch,
      rng: Array | None = None,
      decoder_params: Mapping[str, Any] | None = None,
      return_all_decodes: bool = False,
      num_decodes: int = 1,
  ) -> tuple[Int[Array, 'B *n S'], Mapping[str, Any]]:
    """Decodes as many tokens as the batch has target places.

    Args:
      params: nested parameters.
      batch: `encoder_input_tokens` and, for its shape, `decoder_input_tokens`.
      rng: key for strategies that draw.
      decoder_params: further arguments of the strategy.
      return_all_decodes: return every decode, in ascending order of score.
      num_decodes: decodes per row.

    Returns:
      The best decode `[B, S]`, or all of them `[B, n, S]`, and `{'scores'}` of
      the same leading shape.

    Raises:
      ValueError: if the key is given twice.
    """
    options = dict(decoder_params or {})
    if rng is not None and 'decode_rng' in options:
      raise ValueError(
          'predict_batch_with_aux: give the key as rng or as '
          "decoder_params['decode_rng'], not both.")
    if rng is not None:
      options['decode_rng'] = rng
    tokens_to_logits, cache = self._start_decoding(params, batch)
    start = jnp.zeros_like(batch['decoder_input_tokens'])
    decodes, scores = self.decode_fn(
        inputs=start, cache=cache, tokens_to_logits=tokens_to_logits,
        eos_id=self.output_vocabulary.eos_id, num_decodes=num_decodes,
        cache_offset=int(self.module.config.scan_layers), **options)
    if return_all_decodes:
      return decodes, {'scores': scores}
    return decodes[:, -1], {'scores': scores[:, -1]}

  def _start_decoding(
      self, params: Params, batch: Batch
  ) -> tuple[decoding.TokensToLogits, decoding.Cache]:
    """Encodes once; returns the step function and an empty cache."""
    rows, length = batch['decoder_input_tokens'].shape
    encoded = self.module.apply(
        {'params': params}, batch['encoder_input_tokens'],
        enable_dropout=False, method='encode')

    def decode(variables, tokens, index, mutable):
      return self.module.apply(
          {'params': params, **variables}, encoded, tokens,
          decoder_positions=jnp.reshape(index, (-1, 1)).astype(jnp.int32),
          enable_dropout=False, max_decode_length=length, method='decode',
          mutable=mutable)

    # One step sets up the variables: the projected encoding is kept; the values
    # that it put into the cache are dropped, and so never computed.
    _, variables = decode(
        {}, jnp.zeros((rows, 1), jnp.int32), jnp.int32(0),
        ['cache', 'encoded_kv'])
    cache = jax.tree.map(jnp.zeros_like, variables.pop('cache'))

    def tokens_to_logits(state: decoding.DecodingState):
      logits, new = decode(
          {**variables, 'cache': state.cache}, state.cur_token,
          state.cur_index, ['cache'])
      return logits[:, 0], new['cache']

    return tokens_to_logits, cache


def get_input_vocabulary(model: EncoderDecoderModel) -> Any:
  """The model's input vocabulary, for gin."""
  return model.input_vocabulary


def get_output_vocabulary(model: EncoderDecoderModel) -> Any:
  """The model's output vocabulary, for gin."""
  return model.output_vocabulary
