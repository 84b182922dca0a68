"""What a model does with a batch: loss, prediction, score."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from t5x import base_models
from t5x import batch_metrics
from t5x import decoding
from t5x import optimizers

Batch = base_models.Batch
Params = base_models.Params
MetricsMap = batch_metrics.MetricsMap
BaseModel = base_models.BaseModel
BaseTransformerModel = base_models.BaseTransformerModel
DecoderParams = base_models.DecoderParams
compute_base_metrics = batch_metrics.compute_base_metrics
count_packed_examples = batch_metrics.count_packed_examples


class EncoderDecoderModel(BaseTransformerModel):
  """An encoder-decoder trained on target tokens given input tokens."""

  FEATURE_CONVERTER_CLS: str | Callable[..., Any] = 'EncDecFeatureConverter'
  _TOKEN_FEATURES = ('encoder_input_tokens', 'decoder_input_tokens',
                     'decoder_target_tokens')

  def __init__(
      self,
      module: nn.Module,
      input_vocabulary: Any,
      output_vocabulary: Any,
      optimizer_def: optimizers.OptimizerDef,
      decode_fn: Callable[..., Any] = decoding.beam_search,
      feature_converter_cls: Callable[..., Any] | None = None,
      default_decoder_params: DecoderParams | None = None,
      **loss_options: Any,
  ):
    """Binds a network to vocabularies, an optimiser and a loss.

    Args:
      module: a `t5x.examples.t5.network.Transformer` or its like.
      input_vocabulary: SeqIO vocabulary of the inputs.
      output_vocabulary: SeqIO vocabulary of the targets; gives the end token.
      optimizer_def: what is trained, and how.
      decode_fn: a strategy of `t5x.decoding`.
      feature_converter_cls: makes batches; None is `EncDecFeatureConverter`.
      default_decoder_params: how it decodes unless a call says otherwise.
      **loss_options: fields of `LossOptions`.
    """
    super().__init__(module, input_vocabulary, output_vocabulary, optimizer_def,
                     decode_fn, **loss_options)
    if feature_converter_cls is not None:
      self.FEATURE_CONVERTER_CLS = feature_converter_cls
    self._default_decoder_params = default_decoder_params or DecoderParams()

  def _compute_logits(
      self,
      params: Params,
      batch: Batch,
      dropout_rng: Array | None = None,
      mutable: Any = False,
      other_variables: Mapping[str, Any] | None = None,
  ) -> Any:
    """See base class."""
    optional: dict[str, Any] = {
        name: batch[name]
        for name in ('encoder_segment_ids', 'decoder_segment_ids',
                     'encoder_positions', 'decoder_positions')
        if name in batch}
    return self._apply(
        *(batch[name] for name in self._TOKEN_FEATURES), params=params,
        dropout_rng=dropout_rng, other_variables=other_variables,
        mutable=mutable, **optional)

  def predict_batch_with_aux(
      self,
      params: Params,
      batch: Batch,
      rng: Array | None = None,
      decoder_params: Mapping[str, Any] | None = None,
      return_all_decodes: bool | None = None,
      num_decodes: int | None = None,
      prompt_with_targets: bool = False,
  ) -> tuple[Int[Array, 'B *n S'], Mapping[str, Any]]:
    """Decodes as many tokens as the batch has target places.

    Args:
      params: nested parameters.
      batch: `encoder_input_tokens` and, for its shape, `decoder_input_tokens`.
      rng: key for strategies that draw.
      decoder_params: further arguments of the strategy.
      return_all_decodes: return every decode, in ascending order of score; None
        is the model's default.
      num_decodes: decodes per row; None is the model's default.
      prompt_with_targets: go on from the tokens in `decoder_input_tokens`, end
        tokens aside, instead of from nothing.

    Returns:
      The best decode `[B, S]`, or all of them `[B, n, S]`, and `{'scores'}` of
      the same leading shape.

    Raises:
      ValueError: if the key is given twice.
    """
    options = self._decode_options(rng, decoder_params)
    defaults = self._default_decoder_params
    if return_all_decodes is None:
      return_all_decodes = defaults.return_all_decodes
    tokens_to_logits, cache = self._start_decoding(params, batch)
    inputs = jnp.asarray(batch['decoder_input_tokens'])
    forced = (inputs != self._output_vocabulary.eos_id) & prompt_with_targets
    decodes, scores = self._decode_fn(
        inputs=jnp.where(forced, inputs, 0), cache=cache,
        tokens_to_logits=tokens_to_logits,
        num_decodes=num_decodes or defaults.num_decodes, **options)
    if return_all_decodes:
      return decodes, {'scores': scores}
    return decodes[:, -1], {'scores': scores[:, -1]}

  def _start_decoding(
      self, params: Params, batch: Batch
  ) -> tuple[decoding.TokensToLogits, decoding.Cache]:
    """Encodes once; returns the step function and the cache at the start."""
    rows, length = batch['decoder_input_tokens'].shape
    encoded = self.module.apply(
        {'params': params}, batch['encoder_input_tokens'],
        enable_dropout=False, method='encode')

    def decode(variables, tokens, mutable, **options):
      return self.module.apply(
          {'params': params, **variables}, encoded, tokens, **options,
          enable_dropout=False, max_decode_length=length, method='decode',
          mutable=mutable)

    # One step sets up the variables: the projected encoding is kept.
    start = jnp.zeros((rows, 1), jnp.int32)
    _, variables = decode(
        {}, start, ['cache', 'encoded_kv'],
        decoder_target_tokens=jnp.ones_like(start))
    cache = variables.pop('cache')
    time = 1 + int(self.module.config.scan_layers)
    if jax.tree.leaves(cache)[0].shape[time] == length:
      # All that is in the cache comes again with the first token. Dropped, it
      # is never computed. A longer cache holds a prompt of the decoder's.
      cache = jax.tree.map(jnp.zeros_like, cache)

    def tokens_to_logits(state: decoding.DecodingState):
      logits, new = decode(
          {**variables, 'cache': state.cache}, state.cur_token, ['cache'],
          decoder_positions=jnp.reshape(state.cur_index, (-1, 1)))
      return logits[:, 0], new['cache']

    return tokens_to_logits, cache


class DecoderOnlyModel(BaseTransformerModel):
  """A language model; with inputs it is trained on the targets after them.

  One row of inputs a b and targets x y e, as SeqIO's converter makes it:

    decoder_input_tokens        0  a  b  x  y
    decoder_target_tokens       a  b  x  y  e
    decoder_causal_attention    1  1  1  0  0
  """

  FEATURE_CONVERTER_CLS: str | Callable[..., Any] = 'DecoderFeatureConverter'
  _TOKEN_FEATURES = ('decoder_input_tokens', 'decoder_target_tokens')

  def __init__(
      self,
      module: nn.Module,
      vocabulary: Any,
      optimizer_def: optimizers.OptimizerDef,
      decode_fn: Callable[..., Any] = decoding.temperature_sample,
      inputs_bidirectional_attention: bool = False,
      feature_converter_cls: Callable[..., Any] | None = None,
      **loss_options: Any,
  ):
    """Binds a network to a vocabulary, an optimiser and a loss.

    Args:
      module: a `t5x.examples.decoder_only.network.DecoderWrapper` or its like.
      vocabulary: SeqIO vocabulary of inputs and targets.
      optimizer_def: what is trained, and how.
      decode_fn: a strategy of `t5x.decoding`.
      inputs_bidirectional_attention: let the inputs see each other (a prefix
        language model) instead of only what comes before (a causal one).
      feature_converter_cls: makes batches; None is `DecoderFeatureConverter`.
      **loss_options: fields of `LossOptions`.
    """
    super().__init__(module, vocabulary, vocabulary, optimizer_def, decode_fn,
                     **loss_options)
    if feature_converter_cls is not None:
      self.FEATURE_CONVERTER_CLS = feature_converter_cls
    self._inputs_bidirectional_attention = inputs_bidirectional_attention

  def _get_decoder_causal_attention(
      self, batch: Batch) -> Int[Array, 'B S'] | None:
    """The places that see each other; None in a causal model."""
    if not self._inputs_bidirectional_attention:
      return None
    return _required(batch, 'decoder_causal_attention')

  def _compute_logits(
      self,
      params: Params,
      batch: Batch,
      dropout_rng: Array | None = None,
      mutable: Any = False,
      other_variables: Mapping[str, Any] | None = None,
  ) -> Any:
    """See base class."""
    return self._apply(
        *(batch[name] for name in self._TOKEN_FEATURES), params=params,
        dropout_rng=dropout_rng, other_variables=other_variables,
        mutable=mutable,
        decoder_segment_ids=batch.get('decoder_segment_ids'),
        decoder_positions=batch.get('decoder_positions'),
        decoder_causal_attention=self._get_decoder_causal_attention(batch))

  def _compute_kv_cache(
      self,
      params: Params,
      inputs: Int[Array, 'B S'],
      causal_attention_mask: Int[Array, 'B S'],
      max_decode_length: int,
  ) -> decoding.Cache:
    """The cache of whole inputs at once, whatever their lengths.

    Args:
      params: nested parameters.
      inputs: start token and inputs, zeros behind them.
      causal_attention_mask: ones at both.
      max_decode_length: length of the cache.

    Returns:
      A cache that is right at the places of the inputs.
    """
    attention = self._get_decoder_causal_attention(
        {'decoder_causal_attention': causal_attention_mask})
    _, variables = self.module.apply(
        {'params': params}, inputs, causal_attention_mask,
        decoder_causal_attention=attention, enable_dropout=False,
        max_decode_length=max_decode_length, mutable=['cache'])
    return variables['cache']

  def _compute_logits_from_slice(
      self,
      decoding_state: decoding.DecodingState,
      params: Params,
      max_decode_length: int,
  ) -> tuple[Float[Array, 'R V'], decoding.Cache]:
    """Scores of the next token, and the cache with the current one."""
    logits, variables = self.module.apply(
        {'params': params, 'cache': decoding_state.cache},
        decoding_state.cur_token,
        decoder_positions=jnp.reshape(decoding_state.cur_index, (-1, 1)),
        enable_dropout=False, max_decode_length=max_decode_length,
        mutable=['cache'])
    return logits[:, 0], variables['cache']

  def predict_batch_with_aux(
      self,
      params: Params,
      batch: Batch,
      rng: Array | None = None,
      *,
      return_all_decodes: bool = False,
      num_decodes: int = 1,
      decoder_params: Mapping[str, Any] | None = None,
  ) -> tuple[Int[Array, 'B *n S'], Mapping[str, Any]]:
    """Continues the inputs up to the length of the batch.

    Args:
      params: nested parameters.
      batch: `decoder_input_tokens` and `decoder_causal_attention`.
      rng: key for strategies that draw.
      return_all_decodes: return every decode, in ascending order of score.
      num_decodes: decodes per row.
      decoder_params: further arguments of the strategy.

    Returns:
      What follows the inputs, from the left: the best decode `[B, S]`, or all
      of them `[B, n, S]`, and `{'scores'}` of the same leading shape.

    Raises:
      ValueError: if the batch does not say where inputs end, or the key is
        given twice.
    """
    options = self._decode_options(rng, decoder_params)
    inside = _required(batch, 'decoder_causal_attention') > 0
    inputs = jnp.where(inside, batch['decoder_input_tokens'], 0)
    # The last token of the inputs is fed by the first step.
    prefix = jnp.maximum(jnp.sum(inside, axis=1, dtype=jnp.int32) - 1, 0)
    length = inputs.shape[1]
    decodes, scores = self._decode_fn(
        inputs=inputs, num_decodes=num_decodes,
        cache=self._compute_kv_cache(
            params, inputs, inside.astype(jnp.int32), length),
        tokens_to_logits=lambda state: self._compute_logits_from_slice(
            state, params, length),
        initial_index=prefix, **options)
    decodes = remove_prefix(decodes, prefix)
    if return_all_decodes:
      return decodes, {'scores': scores}
    return decodes[:, -1], {'scores': scores[:, -1]}


def _required(batch: Batch, name: str) -> Array:
  """A feature of the batch, or an error that says where it comes from."""
  if name not in batch:
    raise ValueError(
        f'The batch has no {name!r}, only {sorted(batch)}; it tells inputs '
        "from targets. Give TASK_FEATURE_LENGTHS both 'inputs' and 'targets', "
        'and the task both features.')
  return jnp.asarray(batch[name])


def remove_prefix(
    sequence: Int[Array, 'B *n S'], prefix_len: Int[Array, ' B']
) -> Int[Array, 'B *n S']:
  """What follows a prefix of each row, moved to the left; zeros behind it.

  Args:
    sequence: prefix and what follows.
    prefix_len: length of the prefix in each row.

  Returns:
    Rows of the same length.
  """
  ones = (1,) * (sequence.ndim - 1)
  place = jnp.arange(sequence.shape[-1], dtype=jnp.int32).reshape(*ones, -1)
  source = place + prefix_len.astype(jnp.int32).reshape(-1, *ones)
  return jnp.take_along_axis(
      sequence, source, axis=-1, mode='fill', fill_value=0)


def get_input_vocabulary(model: BaseTransformerModel) -> Any:
  """The model's input vocabulary, for gin."""
  return model.input_vocabulary


def get_output_vocabulary(model: BaseTransformerModel) -> Any:
  """The model's output vocabulary, for gin."""
  return model.output_vocabulary
