"""Combining a prompt with the embedded input.

Where the prompt goes, for one row of three tokens (e ends it) and P = 2:

    input            a  b  e  .  .
    prefix           p  q  a  b  e  .  .
    after BOS        a  p  q  b  e  .  .
    suffix           a  b  p  q  e  .  .
"""

from collections.abc import Callable
from typing import Protocol

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from prompt_tuning import prompts
from t5x.examples.t5 import sequence as sequence_lib

Sequence = sequence_lib.Sequence
Combined = Float[Array, 'B P+T H']


class CombinationFn(Protocol):
  """Puts a prompt `[B, P, H]` into embedded tokens `[B, T, H]`."""

  def __call__(
      self,
      prompt: Float[Array, 'B P H'],
      x_embed: Float[Array, 'B T H'],
      x: Int[Array, 'B T'],
  ) -> Combined:
    """The longer sequence; every place of both is in it exactly once."""


def prefix_prompt(
    prompt: Float[Array, 'B P H'],
    x_embed: Float[Array, 'B T H'],
    x: Int[Array, 'B T'],
) -> Combined:
  """The prompt, then the input."""
  del x
  return jnp.concatenate([prompt, x_embed], axis=1)


def prefix_prompt_after_bos(
    prompt: Float[Array, 'B P H'],
    x_embed: Float[Array, 'B T H'],
    x: Int[Array, 'B T'],
) -> Combined:
  """The first token, the prompt, then the rest."""
  del x
  return jnp.concatenate(
      [x_embed[:, :1], prompt, x_embed[:, 1:]], axis=1)


def suffix_prompt(
    prompt: Float[Array, 'B P H'],
    x_embed: Float[Array, 'B T H'],
    x: Int[Array, 'B T'],
    decoder_only: bool = False,
    before_eos: bool = True,
) -> Combined:
  """The input, the prompt after its last token, then padding.

  Args:
    prompt: one per row.
    x_embed: the embedded tokens.
    x: the tokens; 0 is padding.
    decoder_only: the first token is 0 although it is not padding.
    before_eos: keep the last token, which ends the input, behind the prompt.

  Returns:
    The longer sequence; rows may have different lengths.
  """
  length = jnp.sum(x != 0, axis=1, keepdims=True, dtype=jnp.int32)
  length = jnp.clip(
      length + int(decoder_only) - int(before_eos), 0, x.shape[1])
  size = prompt.shape[1]
  place = jnp.arange(size + x.shape[1], dtype=jnp.int32)[None]
  # Which place of [prompt, input] comes to each place of the result.
  source = jnp.where(place < length, place + size,
                     jnp.where(place < length + size, place - length, place))
  both = jnp.concatenate([prompt, x_embed], axis=1)
  return jnp.take_along_axis(both, source[..., None], axis=1)


class Prompt(nn.Module):
  """A prompt and where it goes; what the gin macro PROMPT names.

  Attributes:
    prompt: gives the prompt for tokens and embedded tokens.
    combine: puts it into the input.
  """

  prompt: nn.Module
  combine: CombinationFn = prefix_prompt

  def __call__(
      self, x: Int[Array, 'B T'], x_embed: Float[Array, 'B T H']
  ) -> Combined:
    """The embedded input with the prompt in it."""
    prompt = self.prompt(x, x_embed).astype(x_embed.dtype)
    return self.combine(prompts.expand_to_batch(prompt, x), x_embed, x)


def require_in_front(combine: CombinationFn) -> None:
  """Fails unless a combination puts the prompt before all tokens.

  Raises:
    ValueError: if it puts it elsewhere.
  """
  with jax.ensure_compile_time_eval():
    marked = combine(
        jnp.ones((1, 2, 1)), jnp.zeros((1, 2, 1)), jnp.ones((1, 2), jnp.int32))
    if marked.ravel().tolist() != [1, 1, 0, 0]:
      raise ValueError(
          f'A decoder takes a prompt in front of its tokens only, as they are '
          f'fed one by one; set Prompt.combine to prefix_prompt, not {combine}.'
      )


def extend(
    prompt: Callable[..., Combined], x: Int[Array, 'B T'], sequence: Sequence
) -> Sequence:
  """The sequence with a prompt in it, all of its fields in step.

  Rows are padded on the right, before and after: wherever the prompt went, a
  row has P more real places than it had.

  Args:
    prompt: what PROMPT makes: from tokens and embedded tokens to embeddings.
    x: the tokens.
    sequence: the embedded tokens.

  Returns:
    A sequence of P more places, counted anew; they belong to its prefix.

  Raises:
    ValueError: if a row holds several examples, or has places of its own.
  """
  if sequence.segments is not None or sequence.positions.shape[0] != 1:
    raise ValueError(
        'Packed examples cannot have prompts: every one would need its own. '
        'Set DatasetConfig.pack = False.')
  combined = prompt(x, sequence.x)
  front = ((0, 0), (combined.shape[1] - x.shape[1], 0))
  prefix = sequence.prefix
  if prefix is not None:
    prefix = jnp.pad(prefix, front, constant_values=True)
  return Sequence.create(
      combined, jnp.pad(sequence.valid, front, constant_values=True),
      prefix=prefix)
