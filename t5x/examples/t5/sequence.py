"""The one value that a stack of blocks consumes.

An encoder or decoder first turns tokens into a `Sequence`; the blocks see
nothing else. Whoever makes the sequence longer (a soft prompt) moves all of its
fields together, so masks, relative positions and what the decoder sees of the
encoder cannot disagree.
"""

from typing import Self

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Sequence(flax.struct.PyTreeNode):
  """An embedded sequence and everything that must stay in step with it.

  One row, before and after a prompt of P = 2 is put in front:

    x           a  b  c  .  .          p  q  a  b  c  .  .
    valid       1  1  1  0  0          1  1  1  1  1  0  0
    positions   0  1  2  3  4          0  1  2  3  4  5  6

  Attributes:
    x: embeddings, `[B, T, H]`.
    valid: True where there is a token, False on padding, `[B, T]`.
    positions: places for relative attention, `[1, T]` when they are the same in
      every row and `[B, T]` when not.
    segments: which packed example each place belongs to, from 1, `[B, T]`; None
      when a row holds one example.
    prefix: True at places that see each other whatever their order, `[B, T]`:
      the input of a prefix language model. None when there are none.
    lead: places before a row's first token that are no tokens, but a decoder's
      prompt; no logits are wanted there.
  """

  x: Float[Array, 'B T H']
  valid: Bool[Array, 'B T']
  positions: Int[Array, '#B T']
  segments: Int[Array, 'B T'] | None = None
  prefix: Bool[Array, 'B T'] | None = None
  lead: int = flax.struct.field(pytree_node=False, default=0)

  @classmethod
  def create(
      cls,
      x: Float[Array, 'B T H'],
      valid: Bool[Array, 'B T'],
      positions: Int[Array, '#B T'] | None = None,
      segments: Int[Array, 'B T'] | None = None,
      prefix: Bool[Array, 'B T'] | None = None,
  ) -> Self:
    """A sequence whose positions count from zero unless they are given."""
    if positions is None:
      positions = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    return cls(x, valid, positions, segments, prefix)

  @property
  def first_token(self) -> int:
    """Where tokens begin; a decoding step is one token, without the lead."""
    return self.lead if self.x.shape[1] > self.lead else 0

  def in_cache(self, max_decode_length: int) -> Self:
    """The keys of a decoding cache into which this part is being written.

    Places that are not written yet come later than all queries that count, so
    that causal attention hides them.

    Args:
      max_decode_length: tokens for which the cache has room, besides the lead.

    Returns:
      A sequence of that length; its `x` is not used.
    """
    length = self.lead + max_decode_length
    places = jnp.arange(length, dtype=jnp.int32)[None]
    prefix = self.prefix
    if prefix is not None:
      prefix = jnp.pad(prefix, ((0, 0), (0, length - prefix.shape[1])))
    return self.replace(
        valid=jnp.ones(places.shape, bool), positions=places, segments=None,
        prefix=prefix)

  def visible_from(self, queries: 'Sequence') -> Bool[Array, 'B 1 #Q T']:
    """Which places of this sequence each place of `queries` may attend to.

    Args:
      queries: the attending sequence, Q long; itself for self-attention.

    Returns:
      True where attention is allowed. Without segments it does not depend on
      the query and its query axis has length one.
    """
    visible = self.valid[:, None, None, :]
    if self.segments is None or queries.segments is None:
      return visible
    same = queries.segments[:, None, :, None] == self.segments[:, None, None, :]
    return visible & same

  def causal_from(self, queries: 'Sequence') -> Bool[Array, '#B 1 Q T']:
    """True where a place of this sequence may be seen in causal order.

    That is, where it is not after the query's, or both are in the prefix:

                   a  b  x  y    a b are the prefix
                a  1  1  0  0
                b  1  1  0  0
                x  1  1  1  0
                y  1  1  1  1
    """
    before = (self.positions[:, None, None, :]
              <= queries.positions[:, None, :, None])
    if self.prefix is None or queries.prefix is None:
      return before
    return before | (queries.prefix[:, None, :, None]
                     & self.prefix[:, None, None, :])
