"""Multi-head attention with T5's relative positions and a decoding cache."""

from collections.abc import Callable
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np
from t5x.examples.t5 import config as config_lib
from t5x.examples.t5 import sequence as sequence_lib

Sequence = sequence_lib.Sequence
BlockConfig = config_lib.BlockConfig

MASKED = -1e10
_ATTENTION_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
_DENSE_INIT = nn.initializers.variance_scaling(
    1.0, 'fan_in', 'truncated_normal')
_RELPOS_INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


def dense(
    config: BlockConfig,
    features: int,
    axes: tuple[str, str],
    *,
    init: Callable = _DENSE_INIT,
    name: str | None = None,
    dtype: str | None = None,
) -> nn.Dense:
  """A projection without bias, the logical axes of its kernel named."""
  return nn.Dense(
      features, use_bias=False, name=name, dtype=dtype or config.dtype,
      param_dtype=config.param_dtype,
      kernel_init=nn.with_logical_partitioning(init, axes))


def relative_position_bucket(
    relative_position: Int[Array, '*shape'],
    *,
    bidirectional: bool,
    num_buckets: int = 32,
    max_distance: int = 128,
) -> Int[Array, '*shape']:
  """T5's bucket of a distance: exact when near, logarithmic when far.

  Raffel et al., section 2.1. The first half of the buckets is one distance
  each; the others are bounded by powers of `max_distance / exact`, taken here
  as whole numbers, so that no rounding of a logarithm can move a boundary.

  Args:
    relative_position: place of the key minus place of the query.
    bidirectional: use the upper half of the buckets for keys after the query;
      otherwise such keys fall into bucket zero.
    num_buckets: how many there are.
    max_distance: distances from here on share the last bucket.

  Returns:
    Numbers in `[0, num_buckets)`.
  """
  distance = -relative_position
  offset = jnp.zeros_like(distance)
  if bidirectional:
    num_buckets //= 2
    offset = jnp.where(distance < 0, num_buckets, 0).astype(distance.dtype)
    distance = jnp.abs(distance)
  distance = jnp.maximum(distance, 0)
  exact = num_buckets // 2
  steps = np.arange(1, num_buckets - exact)
  powers = exact * (max_distance / exact) ** (steps / (num_buckets - exact))
  bounds = jnp.asarray(np.ceil(powers - 1e-6), distance.dtype)
  far = exact + jnp.searchsorted(bounds, distance, side='right')
  return offset + jnp.where(
      distance < exact, distance, far.astype(distance.dtype))


class RelativePositionBiases(nn.Module):
  """One learned number per head and distance bucket, shared by all blocks."""

  config: BlockConfig
  bidirectional: bool

  @nn.compact
  def __call__(
      self,
      query_positions: Int[Array, '#B Q'],
      key_positions: Int[Array, '#B T'],
  ) -> Float[Array, '#B N Q T']:
    """What is added to the attention logits."""
    cfg = self.config
    table = self.param(
        'rel_embedding',
        nn.with_logical_partitioning(
            _RELPOS_INIT, ('heads', 'relpos_buckets')),
        (cfg.num_heads, cfg.relpos_num_buckets), jnp.dtype(cfg.param_dtype))
    buckets = relative_position_bucket(
        key_positions[:, None, :] - query_positions[:, :, None],
        bidirectional=self.bidirectional,
        num_buckets=cfg.relpos_num_buckets,
        max_distance=cfg.relpos_max_distance)
    bias = jnp.take(jnp.asarray(table, cfg.dtype), buckets, axis=1)
    return jnp.moveaxis(bias, 0, 1)


def dot_product_attention(
    query: Float[Array, 'B Q N D'],
    key: Float[Array, 'B T N D'],
    value: Float[Array, 'B T N D'],
    *,
    mask: Bool[Array, '#B 1 #Q T'],
    bias: Float[Array, '#B N Q T'] | None = None,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    float32_logits: bool = False,
) -> Float[Array, 'B Q N D']:
  """`softmax(query key^T + bias) value`, without T5's missing `1 / sqrt(D)`.

  Without dropout JAX's own attention is used wherever it computes the same
  thing, that is when the weights are wanted in float32.

  Args:
    query: projected queries.
    key: projected keys.
    value: projected values.
    mask: True where attention is allowed.
    bias: added to the logits.
    dropout_rng: key for dropping weights; None keeps them all.
    dropout_rate: share of the keys dropped per head, the same for all queries.
    float32_logits: compute the weights in float32.

  Returns:
    Per query the weighted mean of the values, in the dtype of `value`.
  """
  in_float32 = float32_logits or query.dtype == jnp.float32
  if dropout_rate == 0.0:
    dropout_rng = None
  if in_float32 and dropout_rng is None:
    bias = None if bias is None else bias.astype(jnp.float32)
    # JAX itself promotes bfloat16 implicitly there.
    with jax.numpy_dtype_promotion('standard'):
      return jax.nn.dot_product_attention(
          query, key, value, bias=bias, mask=mask, scale=1.0)
  dtype = jnp.float32 if in_float32 else query.dtype
  logits = jnp.einsum(
      'bqnd,btnd->bnqt', query.astype(dtype), key.astype(dtype))
  if bias is not None:
    logits = logits + bias.astype(dtype)
  logits = jnp.where(mask, logits, jnp.asarray(MASKED, dtype))
  weights = jax.nn.softmax(logits).astype(value.dtype)
  if dropout_rng is not None:
    batch, heads, _, keys = weights.shape
    keep = jax.random.bernoulli(
        dropout_rng, 1.0 - dropout_rate, (batch, heads, 1, keys))
    weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
  return jnp.einsum('bnqt,btnd->bqnd', weights, value)


class _Attention(nn.Module):
  """Projections that self- and cross-attention have in common."""

  config: BlockConfig

  def heads(
      self, name: str, x: Float[Array, 'B T H'], scale: float = 1.0
  ) -> Float[Array, 'B T N D']:
    """Projects to heads; `scale` multiplies the initial kernel only."""
    cfg = self.config

    def init(*args):
      return _ATTENTION_INIT(*args) * jnp.asarray(scale, args[-1])

    x = dense(cfg, cfg.num_heads * cfg.head_dim, ('embed', 'joined_kv'),
              name=name, init=init)(x)
    x = x.reshape(*x.shape[:-1], cfg.num_heads, cfg.head_dim)
    return nn.with_logical_constraint(x, ('batch', 'length', 'heads', 'kv'))

  def query(self, x: Float[Array, 'B Q H']) -> Float[Array, 'B Q N D']:
    """Queries; their initial kernel carries the `1 / sqrt(D)` of the logits."""
    return self.heads('query', x, scale=1.0 / math.sqrt(self.config.head_dim))

  def attend(
      self, query: Array, key: Array, value: Array, mask: Array,
      bias: Array | None, deterministic: bool,
  ) -> Float[Array, 'B Q H']:
    """Attention and the output projection."""
    cfg = self.config
    drop = cfg.dropout_rate > 0.0 and not deterministic
    x = dot_product_attention(
        query, key, value, mask=mask, bias=bias,
        dropout_rng=self.make_rng('dropout') if drop else None,
        dropout_rate=cfg.dropout_rate,
        float32_logits=cfg.float32_attention_logits)
    return dense(
        cfg, cfg.emb_dim, ('joined_kv', 'embed'), name='out',
        init=_ATTENTION_INIT)(x.reshape(*x.shape[:-2], -1))


class SelfAttention(_Attention):
  """Attention of a sequence to itself."""

  @nn.compact
  def __call__(
      self,
      x: Float[Array, 'B Q H'],
      mask: Bool[Array, '#B 1 #Q T'],
      bias: Float[Array, '#B N Q T'] | None,
      position: Int[Array, '#B'] | None = None,
      *,
      deterministic: bool,
  ) -> Float[Array, 'B Q H']:
    """Attends.

    Args:
      x: the sequence; in decoding its newest part.
      mask: True where attention is allowed.
      bias: relative-position bias.
      position: None, or the place of `x[:, 0]` in a cache that is as long as
        the mask: keys and values are then added to the cache and read from it.
      deterministic: no dropout.

    Returns:
      The attended sequence, as long as `x`.
    """
    query, key, value = self.query(x), *(
        self.heads(name, x) for name in ('key', 'value'))
    if position is not None:
      key = self._cached('cached_key', key, position, mask.shape[-1])
      value = self._cached('cached_value', value, position, mask.shape[-1])
    return self.attend(query, key, value, mask, bias, deterministic)

  def _cached(
      self, name: str, new: Float[Array, 'B Q N D'],
      position: Int[Array, '#B'], length: int,
  ) -> Float[Array, 'B T N D']:
    """Writes the new part into the cache and returns all of it."""
    shape = (new.shape[0], length, *new.shape[2:])
    cache = self.variable('cache', name, jnp.zeros, shape, new.dtype)
    if position.shape[0] == 1:
      cache.value = jax.lax.dynamic_update_slice_in_dim(
          cache.value, new, position[0], axis=1)
    else:
      cache.value = jax.vmap(jax.lax.dynamic_update_slice_in_dim,
                             in_axes=(0, 0, 0, None))(
                                 cache.value, new, position, 0)
    return cache.value


class CrossAttention(_Attention):
  """Attention of the decoder to the encoded sequence."""

  @nn.compact
  def __call__(
      self,
      x: Float[Array, 'R Q H'],
      encoded: Sequence,
      mask: Bool[Array, 'B 1 #Q T'],
      *,
      deterministic: bool,
      decode: bool = False,
  ) -> Float[Array, 'R Q H']:
    """Attends.

    In decoding the projected keys and values are computed once, kept in the
    collection `encoded_kv`, and shared by the `R / B` decodes of a row, which
    attend as if they were further queries of that row.

    Args:
      x: the decoder's sequence.
      encoded: what the encoder returned.
      mask: True where attention is allowed.
      deterministic: no dropout.
      decode: keep keys and values between steps.

    Returns:
      The attended sequence, as long as `x`.
    """
    query = self.query(x)

    def projected(name: str) -> Float[Array, 'B T N D']:
      return self.heads(name, encoded.x)

    if not decode:
      key, value = projected('key'), projected('value')
    else:
      key, value = (
          self.variable(
              'encoded_kv', f'encoded_{name}', projected, name).value
          for name in ('key', 'value'))
      query = query.reshape(key.shape[0], -1, *query.shape[2:])
    out = self.attend(query, key, value, mask, None, deterministic)
    return out.reshape(*x.shape[:-1], -1)
