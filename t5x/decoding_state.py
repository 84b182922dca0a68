"""What all decoding strategies share: their state, caches and beams.

Decoding rows are `R = B * num_decodes`, the decodes of one input next to each
other. Tokens are kept by the place that they were predicted at: `sequences[i]`
follows the i-th token that was fed, which is the start token for `i = 0`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import core
from flax import traverse_util
import flax.struct
import jax
from jax import export
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NEG_INF = -1.0e7

Cache = Mapping[str, Any]
# Leaves of a cache that are the same for all rows and decodes.
_SHARED_LEAVES = ('cached_bias', 'position_embedder_index')
_INDEX_LEAF = 'cache_index'


class DecodingState(flax.struct.PyTreeNode):
  """What the model needs to score the next position.

  Attributes:
    cur_index: position of the current token: `[]` where all rows stand at the
      same one, `[R]` where their prompts have different lengths.
    sequences: tokens so far, `[R, S]`.
    cur_token: the token to feed, `[R, 1]`.
    cache: the model's cache.
  """

  cur_index: Int[Array, '*R']
  sequences: Int[Array, 'R S']
  cur_token: Int[Array, 'R 1']
  cache: Cache


TokensToLogits = Callable[[DecodingState], tuple[Array, Cache]]


def cache_map(
    fn: Callable[[Array], Array], cache: Cache, apply_to_index: bool = False
) -> Cache:
  """Applies `fn` to every array of a cache that has a row per decode.

  Args:
    fn: from array to array.
    cache: nested dictionaries of arrays, frozen or not.
    apply_to_index: the `cache_index` of the layers has rows too, as it has
      once prompts of different lengths were put into the cache.

  Returns:
    A cache of the same structure.
  """
  skipped = _SHARED_LEAVES + (() if apply_to_index else (_INDEX_LEAF,))
  mapped = traverse_util.unflatten_dict({
      path: x if path[-1] in skipped else fn(x)
      for path, x in traverse_util.flatten_dict(cache).items()
  })
  return core.freeze(mapped) if isinstance(cache, core.FrozenDict) else mapped


def add_beam_dim(x: Array, beam_size: int, offset: int = 0) -> Array:
  """Copies every row: `[B, ...]` to `[B, n, ...]`, B being axis `offset`."""
  return jnp.repeat(jnp.expand_dims(x, offset + 1), beam_size, offset + 1)


def flatten_beam_dim(x: Array, offset: int = 0) -> Array:
  """`[B, n, ...]` to `[B * n, ...]`, B being axis `offset`."""
  return x.reshape(*x.shape[:offset], -1, *x.shape[offset + 2:])


def unflatten_beam_dim(
    x: Array, batch_size: int, beam_size: int, offset: int = 0) -> Array:
  """`[B * n, ...]` to `[B, n, ...]`, B being axis `offset`."""
  return x.reshape(
      *x.shape[:offset], batch_size, beam_size, *x.shape[offset + 1:])


def flat_batch_beam_expand(x: Array, beam_size: int, offset: int = 0) -> Array:
  """Copies every row: `[B, ...]` to `[B * n, ...]`, B being axis `offset`."""
  return flatten_beam_dim(add_beam_dim(x, beam_size, offset), offset)


def top_k(
    x: Float[Array, '*rows V'], n: int
) -> tuple[Float[Array, '*rows n'], Int[Array, '*rows n']]:
  """The largest values and their places, in descending order.

  Where the number of rows is open, as in a program that is exported, they are
  sorted: what `jax.lax.top_k` becomes cannot be read by TensorFlow then.
  """
  if not any(export.is_symbolic_dim(size) for size in x.shape):
    return jax.lax.top_k(x, n)
  place = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
  negative, index = jax.lax.sort((-x, place), num_keys=1)
  return -negative[..., :n], index[..., :n]


def forced_next(tokens: Int[Array, 'B S']) -> Int[Array, 'B S']:
  """What must follow each position: the given tokens, shifted; 0 is free."""
  return jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))


def token_at(
    tokens: Int[Array, 'B S'], index: Int[Array, '*B']) -> Int[Array, ' B']:
  """The token of every row at one position, or at a position per row."""
  column = jnp.broadcast_to(jnp.reshape(index, (-1, 1)), (tokens.shape[0], 1))
  return jnp.take_along_axis(tokens, column, axis=1, mode='clip')[:, 0]


def put_token(
    tokens: Int[Array, '*rows S'],
    index: Int[Array, '*B'],
    token: Int[Array, '*rows'],
) -> Int[Array, '*rows S']:
  """Writes a token into every row; a position after the end writes nothing."""
  ones = (1,) * (tokens.ndim - 1)
  here = (jnp.arange(tokens.shape[-1], dtype=jnp.int32).reshape(*ones, -1)
          == jnp.reshape(index, (-1, *ones)))
  return jnp.where(here, token[..., None], tokens)


def prompts_of(
    forced: Int[Array, 'B S'], index: Int[Array, '*B']
) -> Int[Array, 'B S']:
  """Sequences that hold what is in the cache before decoding begins.

  Args:
    forced: what must follow each position.
    index: the position of the first token to feed; the cache holds the
      positions before it.

  Returns:
    The given tokens before the position, zeros from there on.
  """
  place = jnp.arange(forced.shape[1], dtype=jnp.int32)[None]
  return jnp.where(place < jnp.reshape(index, (-1, 1)), forced, 0)


def last_position(
    forced: Int[Array, 'B S'],
    index: Int[Array, '*B'],
    steps: int | Int[Array, '*B'],
) -> Int[Array, ' B']:
  """The position before which rows end that may decode only so many tokens.

  Args:
    forced: what must follow each position.
    index: the position of the first token to feed.
    steps: tokens that may follow the prompt.

  Returns:
    At most S, per row.
  """
  length = forced.shape[1]
  place = jnp.arange(1, length + 1, dtype=jnp.int32)[None]
  prompt = jnp.max(jnp.where(forced > 0, place, 0), axis=1)
  return jnp.minimum(jnp.maximum(prompt, index) + steps, length)
