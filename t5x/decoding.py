"""Decoding strategies: sampling (greedy included) and beam search.

A strategy is a function of the tokens to continue, a cache and
`tokens_to_logits`, which runs the model for one position. Decoding rows are
`R = B * num_decodes`, the decodes of one input next to each other.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from flax import traverse_util
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from t5x import keyword_options

NEG_INF = -1.0e7
MIN_TEMPERATURE = 1e-4

Cache = Mapping[str, Any]

# Positions in the cache are the same for all decodes of a row.
_SHARED_CACHE_LEAVES = ('cache_index',)


class DecodingState(flax.struct.PyTreeNode):
  """What the model needs to score the next position.

  Attributes:
    cur_index: position of the current token, `[]`.
    sequences: tokens so far, `[R, S]`.
    cur_token: the token to feed, `[R, 1]`.
    cache: the model's cache.
  """

  cur_index: Int[Array, '']
  sequences: Int[Array, 'R S']
  cur_token: Int[Array, 'R 1']
  cache: Cache


TokensToLogits = Callable[
    [DecodingState], tuple[Float[Array, 'R V'], Cache]]


def cache_map(fn: Callable[[Array], Array], cache: Cache) -> Cache:
  """Applies `fn` to every array of a cache that has a row per decode."""
  flat = traverse_util.flatten_dict(cache)
  return traverse_util.unflatten_dict({
      path: x if path[-1] in _SHARED_CACHE_LEAVES else fn(x)
      for path, x in flat.items()
  })


def flat_batch_beam_expand(x: Array, beams: int, axis: int = 0) -> Array:
  """Repeats every row `beams` times: `[B, ...]` to `[B * beams, ...]`."""
  return jnp.repeat(x, beams, axis=axis)


def brevity_penalty(alpha: float, length: Int[Array, '']) -> Float[Array, '']:
  """`((5 + length) / 6)^alpha`: Wu et al., arXiv 1609.08144, equation 14."""
  return jnp.power((5.0 + jnp.asarray(length, jnp.float32)) / 6.0, alpha)


def _forced_next(tokens: Int[Array, 'R S']) -> Int[Array, 'R S']:
  """What must follow each position: the given tokens, shifted; 0 is free."""
  return jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))


def _keep_top_k(
    logits: Float[Array, 'R V'], k: int
) -> Float[Array, 'R V']:
  """Masks everything below the k-th best logit; ties with it are kept."""
  lowest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
  return jnp.where(logits >= lowest, logits, NEG_INF)


def _keep_top_p(
    logits: Float[Array, 'R V'], p: float
) -> Float[Array, 'R V']:
  """Masks all but the most likely tokens whose probabilities reach `p`."""
  ordered = jnp.sort(logits, axis=-1, descending=True)
  before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(
      ordered)
  kept = jnp.where(before < p, ordered, jnp.inf)
  lowest = jnp.min(kept, axis=-1, keepdims=True)
  return jnp.where(logits >= lowest, logits, NEG_INF)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How `temperature_sample` draws; these are its gin parameters.

  Attributes:
    temperature: divides the logits; below 1e-4 is greedy.
    topk: keep the k best tokens; 0 keeps all, 1 is greedy.
    topp: keep the smallest set whose probability reaches this; 0 keeps all.
    rescale_log_probs: score under the filtered distribution that was sampled
      from, instead of the model's own.
  """

  temperature: float = 1.0
  topk: int = 1
  topp: float = 0.0
  rescale_log_probs: bool = True

  def __post_init__(self):
    if self.topk and self.topp:
      raise ValueError(
          f'temperature_sample: topk is {self.topk} and topp is {self.topp}; '
          'set one to 0.')

  def draw(
      self, logits: Float[Array, 'R V'], rng: Array
  ) -> tuple[Int[Array, ' R'], Float[Array, ' R']]:
    """A token per row, and its log probability."""
    scaled = logits / max(self.temperature, MIN_TEMPERATURE)
    if self.topk == 1 or self.temperature < MIN_TEMPERATURE:
      token = jnp.argmax(logits, axis=-1)
      chosen = jnp.arange(logits.shape[-1])[None] == token[:, None]
      scaled = jnp.where(chosen, scaled, -jnp.inf)
    else:
      if self.topk:
        scaled = _keep_top_k(scaled, self.topk)
      if self.topp:
        scaled = _keep_top_p(scaled, self.topp)
      token = jax.random.categorical(rng, scaled)
    log_probs = jax.nn.log_softmax(
        scaled if self.rescale_log_probs else logits)
    return token, jnp.take_along_axis(
        log_probs, token[:, None], axis=-1)[:, 0]


class _SamplingState(flax.struct.PyTreeNode):
  """The loop state of `temperature_sample`."""

  decoding: DecodingState
  ended: Bool[Array, ' R']
  log_prob: Float[Array, ' R']
  rng: Array


@keyword_options.fields_of(Sampling)
def temperature_sample(
    inputs: Int[Array, 'B S'],
    cache: Cache,
    tokens_to_logits: TokensToLogits,
    eos_id: int,
    *,
    num_decodes: int = 1,
    decode_rng: Array | None = None,
    cache_offset: int = 0,
    **options: Any,
) -> tuple[Int[Array, 'B n S'], Float[Array, 'B n']]:
  """Samples one token after another; the default, `topk=1`, is greedy.

  Args:
    inputs: `[:, 0]` is the start token; later non-zero tokens are forced.
    cache: the model's cache, one row per input.
    tokens_to_logits: scores the next position.
    eos_id: a row that has produced it is continued with zeros.
    num_decodes: samples per input.
    decode_rng: key; defaults to key 0.
    cache_offset: axis of the cache that is the batch.
    **options: fields of `Sampling`.

  Returns:
    Samples in ascending order of log probability, and those log probabilities
    of the tokens that were not forced.

  Raises:
    ValueError: if both topk and topp are set.
  """
  sampling = Sampling(**options)
  batch, length = inputs.shape
  expand = functools.partial(
      flat_batch_beam_expand, beams=num_decodes, axis=cache_offset)
  tokens = jnp.repeat(inputs, num_decodes, axis=0)
  forced = _forced_next(tokens)
  rows = batch * num_decodes

  def step(state: _SamplingState) -> _SamplingState:
    i = state.decoding.cur_index
    logits, new_cache = tokens_to_logits(state.decoding)
    rng, key = jax.random.split(state.rng)
    token, score = sampling.draw(logits.astype(jnp.float32), key)
    token = token.astype(tokens.dtype)
    given = jax.lax.dynamic_index_in_dim(forced, i, axis=1, keepdims=False)
    token = jnp.where(given > 0, given, jnp.where(state.ended, 0, token))
    counted = ~state.ended & (given == 0)
    sequences = jax.lax.dynamic_update_index_in_dim(
        state.decoding.sequences, token, i, axis=1)
    return _SamplingState(
        decoding=DecodingState(
            cur_index=i + 1, sequences=sequences, cur_token=token[:, None],
            cache=new_cache),
        ended=state.ended | ((token == eos_id) & (given == 0)),
        log_prob=state.log_prob + jnp.where(counted, score, 0.0),
        rng=rng)

  final = jax.lax.while_loop(
      lambda state: (state.decoding.cur_index < length) & ~jnp.all(state.ended),
      step,
      _SamplingState(
          decoding=DecodingState(
              cur_index=jnp.int32(0), sequences=jnp.zeros_like(tokens),
              cur_token=tokens[:, :1], cache=cache_map(expand, cache)),
          ended=jnp.zeros(rows, bool),
          log_prob=jnp.zeros(rows, jnp.float32),
          rng=jax.random.key(0) if decode_rng is None else decode_rng))
  log_prob = final.log_prob.reshape(batch, num_decodes)
  sequences = final.decoding.sequences.reshape(batch, num_decodes, length)
  order = jnp.argsort(log_prob, axis=1)
  return (jnp.take_along_axis(sequences, order[..., None], axis=1),
          jnp.take_along_axis(log_prob, order, axis=1))


class _BeamState(flax.struct.PyTreeNode):
  """The loop state of `beam_search`; `n` is the number of beams."""

  index: Int[Array, '']
  live_scores: Float[Array, 'B n']
  live_tokens: Int[Array, 'B n S']
  done_scores: Float[Array, 'B n']
  done_tokens: Int[Array, 'B n S']
  last: Int[Array, 'B n']
  cache: Cache


def _best(
    n: int, scores: Float[Array, 'B m'], *values: Array
) -> tuple[Array, ...]:
  """The n best candidates per row and the values that go with them."""
  top, index = jax.lax.top_k(scores, n)

  def take(x):
    wide = index.reshape(index.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, wide, axis=1)

  return top, *(take(x) for x in values)


def _extend_beams(
    state: _BeamState,
    log_probs: Float[Array, 'B n V'],
    given: Int[Array, 'B 1'],
    *,
    eos_id: int,
    alpha: float,
) -> tuple[_BeamState, Int[Array, 'B n']]:
  """One token more on every beam.

  Args:
    state: beams that end before position `state.index`.
    log_probs: log probability of every next token after every beam.
    given: the token that must follow, 0 where the model chooses.
    eos_id: ends a hypothesis.
    alpha: exponent of the length penalty.

  Returns:
    The beams after the step, with the cache not yet reordered, and which old
    beam each live one continues.
  """
  batch, n, vocab = log_probs.shape
  i = state.index
  must = jnp.arange(vocab)[None, None] == given[..., None]
  log_probs = jnp.where(
      given[..., None] > 0, jnp.where(must, 0.0, NEG_INF), log_probs)
  candidates = (state.live_scores[..., None] + log_probs).reshape(batch, -1)
  scores, index = jax.lax.top_k(candidates, min(2 * n, n * vocab))
  parent = index // vocab
  token = (index % vocab).astype(state.live_tokens.dtype)
  tokens = jnp.take_along_axis(
      state.live_tokens, parent[..., None], axis=1).at[:, :, i].set(token)
  ends = (token == eos_id) & (given == 0)
  ended_scores = jnp.where(
      ends, scores / brevity_penalty(alpha, i + 1), NEG_INF)
  done_scores, done_tokens = _best(
      n,
      jnp.concatenate([state.done_scores, ended_scores], axis=1),
      jnp.concatenate([state.done_tokens, tokens], axis=1))
  live_scores, live_tokens, last, parent = _best(
      n, jnp.where(ends, NEG_INF, scores), tokens, token, parent)
  return _BeamState(
      index=i + 1, live_scores=live_scores, live_tokens=live_tokens,
      done_scores=done_scores, done_tokens=done_tokens, last=last,
      cache=state.cache), parent


def beam_search(
    inputs: Int[Array, 'B S'],
    cache: Cache,
    tokens_to_logits: TokensToLogits,
    eos_id: int,
    *,
    num_decodes: int = 4,
    alpha: float = 0.6,
    decode_rng: Array | None = None,
    cache_offset: int = 0,
) -> tuple[Int[Array, 'B n S'], Float[Array, 'B n']]:
  """Beam search with the length penalty of `brevity_penalty`.

  It stops when no live beam can still beat the worst finished one.

  Args:
    inputs: `[:, 0]` is the start token; later non-zero tokens are forced.
    cache: the model's cache, one row per input.
    tokens_to_logits: scores the next position.
    eos_id: ends a hypothesis.
    num_decodes: beams.
    alpha: exponent of the length penalty; 0 is none.
    decode_rng: accepted so that all strategies are called alike.
    cache_offset: axis of the cache that is the batch.

  Returns:
    Hypotheses in ascending order of score, and their scores (log probability
    over penalty). Rows without any finished hypothesis return the live ones.
  """
  del decode_rng
  n, (batch, length) = num_decodes, inputs.shape
  forced = _forced_next(inputs)
  longest = brevity_penalty(alpha, jnp.int32(length))

  def unfinished(state: _BeamState):
    reachable = state.live_scores[:, 0] / longest
    improvable = reachable > jnp.min(state.done_scores, axis=1)
    return (state.index < length) & jnp.any(improvable)

  def step(state: _BeamState) -> _BeamState:
    logits, new_cache = tokens_to_logits(DecodingState(
        cur_index=state.index,
        sequences=state.live_tokens.reshape(batch * n, length),
        cur_token=state.last.reshape(batch * n, 1),
        cache=state.cache))
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    given = jax.lax.dynamic_index_in_dim(forced, state.index, axis=1)
    state, parent = _extend_beams(
        state, log_probs.reshape(batch, n, -1), given,
        eos_id=eos_id, alpha=alpha)
    row = (jnp.arange(batch)[:, None] * n + parent).reshape(-1)
    return state.replace(cache=cache_map(
        lambda x: jnp.take(x, row, axis=cache_offset), new_cache))

  nothing = jnp.zeros((batch, n, length), inputs.dtype)
  only_first = jnp.where(jnp.arange(n) == 0, 0.0, NEG_INF)
  final = jax.lax.while_loop(unfinished, step, _BeamState(
      index=jnp.int32(0),
      live_scores=jnp.tile(only_first[None], (batch, 1)),
      live_tokens=nothing,
      done_scores=jnp.full((batch, n), NEG_INF),
      done_tokens=nothing,
      last=jnp.tile(inputs[:, :1], (1, n)),
      cache=cache_map(
          lambda x: flat_batch_beam_expand(x, n, cache_offset), cache)))
  none_done = jnp.all(final.done_scores <= NEG_INF, axis=1)[:, None]
  scores = jnp.where(none_done, final.live_scores, final.done_scores)
  tokens = jnp.where(
      none_done[..., None], final.live_tokens, final.done_tokens)
  return tokens[:, ::-1], scores[:, ::-1]
