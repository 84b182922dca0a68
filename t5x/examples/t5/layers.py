"""The blocks of T5: norms, feed-forward layers, encoder and decoder layers."""

from collections.abc import Callable
import functools
import operator

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from t5x.examples.t5 import attention
from t5x.examples.t5 import config as config_lib
from t5x.examples.t5 import sequence as sequence_lib

Sequence = sequence_lib.Sequence
BlockConfig = config_lib.BlockConfig


class BlockContext(flax.struct.PyTreeNode):
  """What is the same for all blocks of a stack.

  Attributes:
    mask: True where self-attention is allowed, `[#B, 1, #Q, T]`.
    bias: relative-position bias, `[#B, N, Q, T]`.
    position: place of the first query in the decoding cache, `[#B]`; None when
      there is no cache.
    encoded: what the encoder returned; None in an encoder and in a decoder that
      stands alone.
    encoded_mask: True where cross-attention is allowed, `[B, 1, #Q, T]`.
  """

  mask: Bool[Array, '#B 1 #Q T']
  bias: Float[Array, '#B N Q T'] | None
  position: Int[Array, '#B'] | None = None
  encoded: Sequence | None = None
  encoded_mask: Bool[Array, 'B 1 #Q T'] | None = None


class LayerNorm(nn.Module):
  """T5's norm: `x / sqrt(mean(x^2) + 1e-6) * scale`, the mean in float32.

  The result is rounded to the activations' dtype before it is scaled, as in
  T5X; Flax's RMSNorm rounds after.
  """

  config: BlockConfig

  @nn.compact
  def __call__(self, x: Float[Array, '*B H']) -> Float[Array, '*B H']:
    """Normalises the last axis."""
    cfg = self.config
    scale = self.param(
        'scale',
        nn.with_logical_partitioning(nn.initializers.ones, ('embed',)),
        (x.shape[-1],), jnp.dtype(cfg.param_dtype))
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    unit = (wide * jax.lax.rsqrt(mean_square + 1e-6)).astype(cfg.dtype)
    return unit * jnp.broadcast_to(
        jnp.asarray(scale, cfg.dtype), unit.shape)


def embedder(config: BlockConfig) -> nn.Embed:
  """A table of token embeddings."""
  return nn.Embed(
      config.vocab_size, config.emb_dim, dtype=config.dtype,
      param_dtype=config.param_dtype,
      embedding_init=nn.with_logical_partitioning(
          nn.initializers.normal(1.0), ('vocab', 'embed')))


def dropout(config: BlockConfig) -> nn.Dropout:
  """Dropout whose mask is the same along the sequence."""
  return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


def activation(name: str) -> Callable[[Array], Array]:
  """An activation of `flax.linen` by name; 'linear' is the identity."""
  return (lambda x: x) if name == 'linear' else getattr(nn, name)


class MlpBlock(nn.Module):
  """`wo(act_0(wi_0 x) * act_1(wi_1 x) ...)`."""

  config: BlockConfig

  @nn.compact
  def __call__(
      self, x: Float[Array, 'B T H'], deterministic: bool
  ) -> Float[Array, 'B T H']:
    """Applies the block at every place."""
    cfg = self.config
    many = len(cfg.mlp_activations) > 1
    hidden = functools.reduce(operator.mul, [
        activation(name)(
            attention.dense(cfg, cfg.mlp_dim, ('embed', 'mlp'),
                            name=f'wi_{i}' if many else 'wi')(x))
        for i, name in enumerate(cfg.mlp_activations)
    ])
    hidden = dropout(cfg)(hidden, deterministic)
    hidden = nn.with_logical_constraint(hidden, ('batch', 'length', 'mlp'))
    return attention.dense(
        cfg, cfg.emb_dim, ('mlp', 'embed'), name='wo')(hidden)


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each `x + dropout(f(norm(x)))`."""

  config: BlockConfig

  def setup(self):
    cfg = self.config
    self.pre_attention_layer_norm = LayerNorm(cfg)
    self.attention = attention.SelfAttention(cfg)
    self.pre_mlp_layer_norm = LayerNorm(cfg)
    self.mlp = MlpBlock(cfg)
    self.dropout = dropout(cfg)

  def __call__(
      self, x: Float[Array, 'B T H'], context: BlockContext, deterministic: bool
  ) -> tuple[Float[Array, 'B T H'], None]:
    """The next hidden states, and None: the form that a scan wants."""
    y = self.attention(
        self.pre_attention_layer_norm(x), context.mask, context.bias,
        deterministic=deterministic)
    x = x + self.dropout(y, deterministic)
    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
    return x + self.dropout(y, deterministic), None


class DecoderLayer(nn.Module):
  """Self-attention, cross-attention if there is an encoder, feed-forward."""

  config: BlockConfig

  def setup(self):
    cfg = self.config
    self.pre_self_attention_layer_norm = LayerNorm(cfg)
    self.self_attention = attention.SelfAttention(cfg)
    self.pre_cross_attention_layer_norm = LayerNorm(cfg)
    self.encoder_decoder_attention = attention.CrossAttention(cfg)
    self.pre_mlp_layer_norm = LayerNorm(cfg)
    self.mlp = MlpBlock(cfg)
    self.dropout = dropout(cfg)

  def __call__(
      self, x: Float[Array, 'B T H'], context: BlockContext, deterministic: bool
  ) -> tuple[Float[Array, 'B T H'], None]:
    """The next hidden states, and None: the form that a scan wants."""
    y = self.self_attention(
        self.pre_self_attention_layer_norm(x), context.mask, context.bias,
        context.position, deterministic=deterministic)
    x = x + self.dropout(y, deterministic)
    if context.encoded is not None and context.encoded_mask is not None:
      y = self.encoder_decoder_attention(
          self.pre_cross_attention_layer_norm(x), context.encoded,
          context.encoded_mask, deterministic=deterministic,
          decode=context.position is not None)
      x = x + self.dropout(y, deterministic)
    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
    return x + self.dropout(y, deterministic), None


def rematerialized(
    layer: type[nn.Module], config: BlockConfig) -> type[nn.Module]:
  """The layer with its backward pass recomputing what the policy says."""
  if config.remat_policy == 'none':
    return layer
  policies = jax.checkpoint_policies
  policy = {
      'minimal': policies.checkpoint_dots_with_no_batch_dims,
      'full': policies.nothing_saveable,
  }[config.remat_policy]
  # Within a scan the loop already keeps XLA from merging the recomputation.
  return nn.remat(
      layer, policy=policy, static_argnums=(3,),
      prevent_cse=not config.scan_layers)


def scanned(
    layer: type[nn.Module], config: BlockConfig, length: int
) -> nn.Module:
  """`length` layers as one, their parameters stacked."""
  return nn.scan(
      rematerialized(layer, config),
      variable_axes={
          'params': config.param_scan_axis, 'cache': 0, 'encoded_kv': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=length,
      metadata_params={nn.PARTITION_NAME: 'layers'},
  )(config)


def unrolled(
    layer: type[nn.Module], config: BlockConfig, length: int
) -> list[nn.Module]:
  """`length` layers one after another."""
  return [rematerialized(layer, config)(config) for _ in range(length)]
