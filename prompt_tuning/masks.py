"""Attention masks, from tokens, that know of prompt positions.

The networks here take their masks from the sequence that the prompt made
longer, so they do not need these. They are for code that has tokens only.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Mask = Float[Array, 'B 1 L L']


def add_fake_prompt(
    prompt_length: int, multitask: bool = False
) -> Callable[[Int[Array, 'B T']], Int[Array, 'B L']]:
  """Puts P ones in front of tokens, so that prompt places look like tokens.

  Only their number matters, not where the real prompt is:

    tokens              a  b  c  0  0
    with P = 2    1  1  a  b  c  0  0

  Args:
    prompt_length: P.
    multitask: drop the first column, which is a task id.

  Returns:
    A function of tokens, `L = P + T`, one less for multitask.
  """
  def fake(tokens: Int[Array, 'B T']) -> Int[Array, 'B L']:
    kept = tokens[:, 1:] if multitask else tokens
    ones = jnp.ones((tokens.shape[0], prompt_length), tokens.dtype)
    return jnp.concatenate([ones, kept], axis=1)

  return fake


def create_prompt_encoder_mask(prompt_length: int) -> Callable[..., Mask]:
  """Every place that is no padding sees every such place, the prompt included.

  Args:
    prompt_length: P.

  Returns:
    A function `(tokens, dtype)` to a mask of ones and zeros, `L = P + T`.
  """
  fake = add_fake_prompt(prompt_length)

  def mask(tokens: Int[Array, 'B T'], dtype: Any = jnp.float32) -> Mask:
    valid = fake(tokens) > 0
    return nn.make_attention_mask(valid, valid, jnp.logical_and, dtype=dtype)

  return mask


def create_prompt_decoder_only_mask(prompt_length: int) -> Callable[..., Mask]:
  """Causal attention, with the prompt inside the bidirectional prefix if any.

  Args:
    prompt_length: P.

  Returns:
    A function `(decoder_target_tokens, decoder_causal_attention, dtype)` to a
    mask; the second is one on the prefix, or None for plain causal attention.
  """
  fake = add_fake_prompt(prompt_length)

  def mask(
      decoder_target_tokens: Int[Array, 'B T'],
      decoder_causal_attention: Int[Array, 'B T'] | None,
      dtype: Any = jnp.float32,
  ) -> Mask:
    valid = fake(decoder_target_tokens) > 0
    allowed = nn.make_causal_mask(valid, dtype=bool)
    if decoder_causal_attention is not None:
      prefix = fake(decoder_causal_attention) > 0
      allowed |= nn.make_attention_mask(
          prefix, prefix, jnp.logical_and, dtype=bool)
    allowed &= nn.make_attention_mask(
        valid, valid, jnp.logical_and, dtype=bool)
    return allowed.astype(dtype)

  return mask
