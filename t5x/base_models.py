"""What all models share: loss, metrics, scores, how decoding is called."""

import abc
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from t5x import batch_metrics
from t5x import decoding
from t5x import keyword_options
from t5x import losses
from t5x import optimizers

Batch = Mapping[str, Array]
Params = Mapping[str, Any]
MetricsMap = batch_metrics.MetricsMap


class BaseModel(abc.ABC):
  """A loss over a batch, and the optimiser that is to lower it."""

  # The SeqIO converter that makes this model's batches: a class, or the name of
  # one of SeqIO's own.
  FEATURE_CONVERTER_CLS: str | Callable[..., Any] = ''

  def __init__(
      self,
      optimizer_def: optimizers.OptimizerDef,
      input_vocabulary: Any = None,
      output_vocabulary: Any = None,
  ):
    self.optimizer_def = optimizer_def
    self._input_vocabulary = input_vocabulary
    self._output_vocabulary = output_vocabulary

  @property
  def input_vocabulary(self) -> Any:
    """SeqIO vocabulary of the inputs."""
    return self._input_vocabulary

  @property
  def output_vocabulary(self) -> Any:
    """SeqIO vocabulary of the targets."""
    return self._output_vocabulary

  @abc.abstractmethod
  def get_initial_variables(
      self,
      rng: Array,
      input_shapes: Mapping[str, tuple[int, ...]],
      input_types: Mapping[str, Any] | None = None,
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
  def score_batch(
      self, params: Params, batch: Batch, return_intermediates: bool = False
  ) -> Any:
    """Log likelihood of every row's targets, and what the network sowed."""

  def eval_fn(
      self, params: Params, batch: Batch
  ) -> tuple[Float[Array, ''], MetricsMap]:
    """The loss without dropout."""
    return self.loss_fn(params, batch, dropout_rng=None)

  def predict_batch(
      self, params: Params, batch: Batch, rng: Array | None = None) -> Any:
    """Predictions for a batch."""
    return self.predict_batch_with_aux(params, batch, rng)[0]


@dataclasses.dataclass(frozen=True)
class LossOptions:
  """What the loss adds to cross entropy; gin parameters of the models.

  Attributes:
    label_smoothing: see `t5x.losses`.
    z_loss: see `t5x.losses`.
    loss_normalizing_factor: see `t5x.losses`; None leaves the loss a sum over
      tokens, which only suits optimisers that ignore its scale.
  """

  label_smoothing: float = 0.0
  z_loss: float = 0.0
  loss_normalizing_factor: losses.LossNormalizingFactor = None


@dataclasses.dataclass(frozen=True)
class DecoderParams:
  """How a model decodes unless a call says otherwise.

  Attributes:
    return_all_decodes: return every decode, in ascending order of score.
    num_decodes: decodes per row.
  """

  return_all_decodes: bool = False
  num_decodes: int = 1


@keyword_options.fields_of(LossOptions)
class BaseTransformerModel(BaseModel):
  """What models of target tokens share: loss, metrics, scores, decoding."""

  # Features that hold tokens; a network can be initialised with these.
  _TOKEN_FEATURES: tuple[str, ...] = ()

  def __init__(
      self,
      module: nn.Module,
      input_vocabulary: Any,
      output_vocabulary: Any,
      optimizer_def: optimizers.OptimizerDef,
      decode_fn: Callable[..., Any] = decoding.temperature_sample,
      **loss_options: Any,
  ):
    """Binds a network to vocabularies, an optimiser and a loss.

    Args:
      module: the network.
      input_vocabulary: SeqIO vocabulary of the inputs.
      output_vocabulary: SeqIO vocabulary of the targets; gives the end token.
      optimizer_def: what is trained, and how.
      decode_fn: a strategy of `t5x.decoding`.
      **loss_options: fields of `LossOptions`.
    """
    super().__init__(optimizer_def, input_vocabulary, output_vocabulary)
    loss = LossOptions(**loss_options)
    self.module = module
    self._decode_fn = decode_fn
    self._label_smoothing = loss.label_smoothing
    self._z_loss = loss.z_loss
    self._loss_normalizing_factor = loss.loss_normalizing_factor

  @property
  def decode_fn(self) -> Callable[..., Any]:
    """The decoding strategy; it can be replaced."""
    return self._decode_fn

  @decode_fn.setter
  def decode_fn(self, decode_fn: Callable[..., Any]) -> None:
    self._decode_fn = decode_fn

  def get_initial_variables(
      self,
      rng: Array,
      input_shapes: Mapping[str, tuple[int, ...]],
      input_types: Mapping[str, Any] | None = None,
  ) -> Mapping[str, Any]:
    """See base class; tokens are integers unless `input_types` says else."""
    types = input_types or {}
    tokens: dict[str, Any] = {
        name: jnp.ones(input_shapes[name], types.get(name, jnp.int32))
        for name in self._TOKEN_FEATURES}
    return self.module.init(rng, **tokens, enable_dropout=False)

  @abc.abstractmethod
  def _compute_logits(
      self,
      params: Params,
      batch: Batch,
      dropout_rng: Array | None = None,
      mutable: Any = False,
      other_variables: Mapping[str, Any] | None = None,
  ) -> Any:
    """Scores of the target tokens; hook for models that change the call.

    Args:
      params: nested parameters.
      batch: model features.
      dropout_rng: None does without dropout.
      mutable: collections that the network may write.
      other_variables: collections besides the parameters.

    Returns:
      Logits `[B, S, V]`, and the written collections if there are `mutable`.
    """

  def _apply(
      self,
      *args: Any,
      params: Params,
      dropout_rng: Array | None,
      other_variables: Mapping[str, Any] | None,
      **options: Any,
  ) -> Any:
    """Runs the network, with dropout if there is a key."""
    return self.module.apply(
        {'params': params, **(other_variables or {})}, *args,
        enable_dropout=dropout_rng is not None,
        rngs=None if dropout_rng is None else {'dropout': dropout_rng},
        **options)

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
    return loss, self._compute_metrics(
        logits, targets, weights, loss, z_loss,
        batch_metrics.segment_ids(batch))

  def _compute_metrics(
      self,
      logits: Float[Array, 'B S V'],
      targets: Int[Array, 'B S'],
      mask: Float[Array, 'B S'],
      loss: Float[Array, ''],
      z_loss: Float[Array, ''] | None = None,
      segment_ids: Mapping[str, Int[Array, 'B L']] | None = None,
  ) -> MetricsMap:
    """Metrics of the logits; hook for models with more of them."""
    return batch_metrics.compute_base_metrics(
        logits, targets, mask, loss, z_loss, segment_ids)

  def score_batch(
      self, params: Params, batch: Batch, return_intermediates: bool = False
  ) -> Any:
    """The summed log probability of every row's target tokens.

    Args:
      params: nested parameters.
      batch: model features.
      return_intermediates: return what the network sowed too.

    Returns:
      Scores `[B]`. With intermediates a pair of them and the network's
      collection of that name, to which `decoder` adds `target_tokens`,
      `loss_weights` and `token_scores`, each a tuple of one `[B, S]`.
    """
    outputs = self._compute_logits(
        params, batch,
        mutable=['intermediates'] if return_intermediates else False)
    logits, variables = outputs if return_intermediates else (outputs, {})
    targets = batch['decoder_target_tokens']
    nats, _ = losses.token_cross_entropy(logits, targets)
    weights = batch.get('decoder_loss_weights', targets > 0).astype(nats.dtype)
    token_scores = -nats * weights
    scores = jnp.sum(token_scores, axis=-1)
    if not return_intermediates:
      return scores
    intermediates = dict(variables.get('intermediates', {}))
    intermediates['decoder'] = {
        **intermediates.get('decoder', {}), 'target_tokens': (targets,),
        'loss_weights': (weights,), 'token_scores': (token_scores,)}
    return scores, intermediates

  def _decode_options(
      self, rng: Array | None, decoder_params: Mapping[str, Any] | None
  ) -> dict[str, Any]:
    """What every call of the strategy takes.

    Args:
      rng: key for strategies that draw.
      decoder_params: further arguments of the strategy.

    Returns:
      Keyword arguments.

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
    eos_id = self._output_vocabulary.eos_id
    return options | {
        'eos_id': 1 if eos_id is None else eos_id,
        'cache_offset': int(self.module.config.scan_layers)}
