"""Beam search with T5X's length penalty."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from t5x import decoding_state
from t5x import keyword_options

NEG_INF = decoding_state.NEG_INF


def brevity_penalty(
    alpha: float | Array, length: int | Int[Array, '*B']
) -> Float[Array, '*B']:
  """`((5 + length) / 6)^alpha`: Wu et al., arXiv 1609.08144, equation 14."""
  return jnp.power((5.0 + jnp.asarray(length, jnp.float32)) / 6.0, alpha)


@dataclasses.dataclass(frozen=True)
class Beams:
  """What else `beam_search` takes; these are its gin parameters.

  Attributes:
    min_log_prob: hypotheses of a lower log probability are given up.
    decode_rng: accepted so that all strategies are called alike.
    cache_offset: axis of the cache that is the batch; 1 for scanned layers.
    initial_index: None, or per input the position of the first token to feed,
      `[B]`; the cache already holds the positions before it.
  """

  min_log_prob: float = NEG_INF
  decode_rng: Array | None = None
  cache_offset: int = 0
  initial_index: Int[Array, ' B'] | None = None


class _BeamState(flax.struct.PyTreeNode):
  """The loop state of `beam_search`; `n` is the number of beams."""

  index: Int[Array, '*B']
  active: Bool[Array, ' B']
  live_scores: Float[Array, 'B n']
  live_tokens: Int[Array, 'B n S']
  done_scores: Float[Array, 'B n']
  done_tokens: Int[Array, 'B n S']
  last: Int[Array, 'B n']
  cache: decoding_state.Cache


@dataclasses.dataclass(frozen=True)
class _Task:
  """What stays the same over the steps of one search.

  Attributes:
    forced: what must follow each position, `[B, S]`; 0 is free.
    end: the position before which rows end, `[]` or `[B]`.
    eos_id: ends a hypothesis.
    alpha: exponent of the length penalty.
    min_log_prob: hypotheses below it are given up.
  """

  forced: Int[Array, 'B S']
  end: Int[Array, '*B']
  eos_id: int
  alpha: float | Array
  min_log_prob: float | Array

  def active(
      self,
      index: Int[Array, '*B'],
      live_scores: Float[Array, 'B n'],
      done_scores: Float[Array, 'B n'],
  ) -> Bool[Array, ' B']:
    """Rows in which a live beam can still beat the worst finished one.

    A beam's log probability only falls, and the penalty that divides it is
    largest at the end of the row.
    """
    best = live_scores[:, 0]
    reachable = best / brevity_penalty(self.alpha, self.end)
    improvable = reachable > jnp.min(done_scores, axis=1)
    return (index < self.end) & (best > NEG_INF) & improvable


def _best(
    n: int, scores: Float[Array, 'B m'], *values: Array
) -> tuple[Array, ...]:
  """The n best candidates per row and the values that go with them."""
  top, index = decoding_state.top_k(scores, n)

  def take(x):
    wide = index.reshape(index.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, wide, axis=1)

  return top, *(take(x) for x in values)


def _extend_beams(
    state: _BeamState, log_probs: Float[Array, 'B n V'], task: _Task
) -> tuple[_BeamState, Int[Array, 'B n']]:
  """One token more on every beam of the rows that are active.

  Args:
    state: beams that end before position `state.index`.
    log_probs: log probability of every next token after every beam.
    task: what may follow, and what it is worth.

  Returns:
    The beams after the step, with the cache not yet reordered, and which old
    beam each live one continues.
  """
  batch, n, vocab = log_probs.shape
  i = state.index
  given = decoding_state.token_at(task.forced, i)[:, None]
  must = jnp.arange(vocab)[None, None] == given[..., None]
  log_probs = jnp.where(
      given[..., None] > 0, jnp.where(must, 0.0, NEG_INF), log_probs)
  candidates = (state.live_scores[..., None] + log_probs).reshape(batch, -1)
  scores, index = decoding_state.top_k(candidates, min(2 * n, n * vocab))
  scores = jnp.where(scores < task.min_log_prob, NEG_INF, scores)
  parent = index // vocab
  token = (index % vocab).astype(state.live_tokens.dtype)
  tokens = decoding_state.put_token(
      jnp.take_along_axis(state.live_tokens, parent[..., None], axis=1),
      i, token)
  ends = (token == task.eos_id) & (given == 0)
  penalty = jnp.reshape(brevity_penalty(task.alpha, i + 1), (-1, 1))
  done_scores, done_tokens = _best(
      n,
      jnp.concatenate([state.done_scores, jnp.where(
          ends & (scores > NEG_INF), scores / penalty, NEG_INF)], axis=1),
      jnp.concatenate([state.done_tokens, tokens], axis=1))
  live_scores, live_tokens, last, parent = _best(
      n, jnp.where(ends, NEG_INF, scores), tokens, token, parent)
  # A row that has ended keeps what it has while the others go on.
  kept = {'live_scores': live_scores, 'live_tokens': live_tokens,
          'done_scores': done_scores, 'done_tokens': done_tokens}
  kept = {
      name: jnp.where(
          state.active.reshape(-1, *(1,) * (x.ndim - 1)), x,
          getattr(state, name))
      for name, x in kept.items()}
  return state.replace(
      index=i + 1, last=last, active=task.active(
          i + 1, kept['live_scores'], kept['done_scores']), **kept), parent


@keyword_options.fields_of(Beams)
def beam_search(
    inputs: Int[Array, 'B S'],
    cache: decoding_state.Cache,
    tokens_to_logits: decoding_state.TokensToLogits,
    eos_id: int,
    num_decodes: int = 4,
    alpha: float = 0.6,
    max_decode_len: int | None = None,
    max_decode_step: int = -1,
    **options: Any,
) -> tuple[Int[Array, 'B n S'], Float[Array, 'B n']]:
  """Beam search with the length penalty of `brevity_penalty`.

  It stops when in no row a live beam can still beat the worst finished one.
  Lengths count from the start of a row, its prompt included.

  Args:
    inputs: `[:, 0]` is the start token; later non-zero tokens are forced.
    cache: the model's cache, one row per input.
    tokens_to_logits: scores the next position.
    eos_id: ends a hypothesis.
    num_decodes: beams.
    alpha: exponent of the length penalty, at least 0; 0 is none.
    max_decode_len: length of the decodes; None is that of `inputs`.
    max_decode_step: tokens that may follow the prompt; -1 is no limit.
    **options: fields of `Beams`.

  Returns:
    Hypotheses in ascending order of score, and their scores (log probability
    over penalty). Rows without any finished hypothesis return the live ones.
  """
  beams = Beams(**options)
  inputs = _of_length(inputs, max_decode_len)
  n, (batch, length) = num_decodes, inputs.shape
  start = (jnp.int32(0) if beams.initial_index is None
           else jnp.asarray(beams.initial_index, jnp.int32))
  forced = decoding_state.forced_next(inputs)
  end = (jnp.int32(length) if max_decode_step < 0
         else decoding_state.last_position(forced, start, max_decode_step))
  task = _Task(forced, end, eos_id, alpha, beams.min_log_prob)

  def step(state: _BeamState) -> _BeamState:
    index = state.index
    logits, new_cache = tokens_to_logits(decoding_state.DecodingState(
        cur_index=index if index.ndim == 0 else jnp.repeat(index, n),
        sequences=decoding_state.flatten_beam_dim(state.live_tokens),
        cur_token=state.last.reshape(batch * n, 1),
        cache=state.cache))
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    state, parent = _extend_beams(
        state, log_probs.reshape(batch, n, -1), task)
    return state.replace(cache=new_cache if n == 1 else _reordered(
        new_cache, parent, beams))

  live_scores = jnp.tile(
      jnp.where(jnp.arange(n) == 0, 0.0, NEG_INF)[None], (batch, 1))
  done_scores = jnp.full((batch, n), NEG_INF)
  final = jax.lax.while_loop(
      lambda state: jnp.any(state.active), step, _BeamState(
          index=start,
          active=task.active(start, live_scores, done_scores),
          live_scores=live_scores,
          live_tokens=decoding_state.add_beam_dim(
              decoding_state.prompts_of(forced, start), n),
          done_scores=done_scores,
          done_tokens=jnp.zeros((batch, n, length), inputs.dtype),
          last=jnp.tile(
              decoding_state.token_at(inputs, start)[:, None], (1, n)),
          cache=decoding_state.cache_map(
              lambda x: decoding_state.flat_batch_beam_expand(
                  x, n, beams.cache_offset), cache,
              apply_to_index=beams.initial_index is not None)))
  none_done = jnp.all(final.done_scores <= NEG_INF, axis=1)[:, None]
  scores = jnp.where(none_done, final.live_scores, final.done_scores)
  tokens = jnp.where(
      none_done[..., None], final.live_tokens, final.done_tokens)
  return tokens[:, ::-1], scores[:, ::-1]


def _of_length(
    inputs: Int[Array, 'B S'], length: int | None) -> Int[Array, 'B L']:
  """The inputs cut or padded to a length."""
  if length is None:
    return inputs
  return jnp.pad(
      inputs[:, :length], ((0, 0), (0, max(0, length - inputs.shape[1]))))


def _reordered(
    cache: decoding_state.Cache, parent: Int[Array, 'B n'], beams: Beams
) -> decoding_state.Cache:
  """The cache of the beams that the live ones continue.

  Rows are gathered within their input, so that a cache whose batch is cut over
  devices stays where it is.
  """
  batch, n = parent.shape
  axis = beams.cache_offset

  def gather(x: Array) -> Array:
    apart = decoding_state.unflatten_beam_dim(x, batch, n, axis)
    chosen = jax.vmap(
        lambda rows, index: jnp.take(rows, index, axis=axis),
        in_axes=(axis, 0), out_axes=axis)(apart, parent)
    return decoding_state.flatten_beam_dim(chosen, axis)

  return decoding_state.cache_map(
      gather, cache, apply_to_index=beams.initial_index is not None)
