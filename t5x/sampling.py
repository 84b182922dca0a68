"""Sampling one token after another, greedy decoding included."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from t5x import decoding_state
from t5x import keyword_options

MIN_TEMPERATURE = 1e-4
NEG_INF = decoding_state.NEG_INF


def topk_mask(
    x: Float[Array, 'R V'], k: int, replace_val: float = NEG_INF
) -> Float[Array, 'R V']:
  """Replaces everything below the k-th best; ties with it are kept."""
  lowest = decoding_state.top_k(x, min(k, x.shape[-1]))[0][:, -1:]
  return jnp.where(x >= lowest, x, replace_val)


def topp_mask(
    logits: Float[Array, 'R V'], p: float | Array, replace_val: float = NEG_INF
) -> Float[Array, 'R V']:
  """Keeps the most likely tokens whose probabilities reach `p`; 0 keeps all.

  Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1.

  Args:
    logits: unnormalised scores.
    p: probability to reach; may be traced.
    replace_val: written in place of the others.

  Returns:
    The logits of the smallest such set, and of ties with its least likely.
  """
  ordered = jnp.sort(logits, axis=-1, descending=True)
  before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(
      ordered)
  kept = jnp.where((before < p) | (p == 0.0), ordered, jnp.inf)
  lowest = jnp.min(kept, axis=-1, keepdims=True)
  return jnp.where(logits >= lowest, logits, replace_val)


class SamplingLoopState(flax.struct.PyTreeNode):
  """The loop state of `temperature_sample`, as its callbacks see it.

  Attributes:
    step: how often the model was asked, `[]`.
    cur_index: position of the current token, `[]` or `[R]`.
    sequences: tokens so far, `[R, S]`.
    cache: the model's cache.
    cur_token: the token to feed, `[R, 1]`.
    ended: rows that get only zeros from here on, `[R]`.
    rng: key of the next draws.
    log_prob: of the tokens that were drawn, `[R]`.
  """

  step: Int[Array, '']
  cur_index: Int[Array, '*R']
  sequences: Int[Array, 'R S']
  cache: decoding_state.Cache
  cur_token: Int[Array, 'R 1']
  ended: Bool[Array, ' R']
  rng: Array
  log_prob: Float[Array, ' R']


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How `temperature_sample` draws; these are its gin parameters.

  Attributes:
    temperature: divides the logits; below 1e-4 is greedy. A number, or an
      array of one per input, `[B]`.
    topk: keep the k best tokens; 0 keeps all, 1 is greedy.
    topp: keep the smallest set whose probability reaches this; 0 keeps all.
    cache_offset: axis of the cache that is the batch; 1 for scanned layers.
    initial_index: None, or per input the position of the first token to feed,
      `[B]`; the cache already holds the positions before it.
    max_decode_steps: tokens that may follow the prompt, a number or `[B]`; None
      goes on to the end of `inputs`.
    max_decode_steps_hard_limit: upper bound of `max_decode_steps`.
    rescale_log_probs: score under the filtered distribution that was sampled
      from, instead of the model's own.
    state_callback_fn: from the loop state to a changed one, before each step.
    logit_callback_fn: from logits and loop state to changed logits.
  """

  temperature: float | Array = 1.0
  topk: int = 1
  topp: float | Array = 0.0
  cache_offset: int = 0
  initial_index: Int[Array, ' B'] | None = None
  max_decode_steps: int | Int[Array, '*B'] | None = None
  max_decode_steps_hard_limit: int | None = None
  rescale_log_probs: bool = True
  state_callback_fn: (
      Callable[[SamplingLoopState], SamplingLoopState] | None) = None
  logit_callback_fn: (
      Callable[[Array, SamplingLoopState], Array] | None) = None

  def __post_init__(self):
    # A traced topp cannot be compared; with zero it filters nothing.
    if self.topk and not isinstance(self.topp, jax.Array) and self.topp:
      raise ValueError(
          f'temperature_sample: topk is {self.topk} and topp is {self.topp}; '
          'set one to 0.')

  def steps(self, num_decodes: int) -> int | Array | None:
    """The limit of every decoding row, both limits taken together."""
    steps, limit = self.max_decode_steps, self.max_decode_steps_hard_limit
    if steps is None:
      return None
    if limit:
      steps = jnp.minimum(jnp.asarray(steps, jnp.int32), limit)
    return per_decode(steps, num_decodes)

  def draw(
      self, logits: Float[Array, 'R V'], temperature: float | Array, rng: Array
  ) -> tuple[Int[Array, ' R'], Float[Array, ' R']]:
    """A token per row, and its log probability.

    Args:
      logits: scores of the next token.
      temperature: a number, or one per row, `[R]`.
      rng: key.

    Returns:
      Tokens and their log probabilities.
    """
    best = jnp.argmax(logits, axis=-1)
    fixed = isinstance(temperature, int | float)
    if self.topk == 1 or (fixed and temperature < MIN_TEMPERATURE):
      token, certain = best, jnp.bool_(True)
      scaled = logits
    else:
      heat = jnp.reshape(jnp.asarray(temperature, logits.dtype), (-1, 1))
      certain = heat < MIN_TEMPERATURE
      scaled = self._filtered(logits / jnp.maximum(heat, MIN_TEMPERATURE))
      token = jnp.where(
          certain[:, 0], best, jax.random.categorical(rng, scaled))
    if self.rescale_log_probs:
      # A greedy choice has probability one.
      others = jnp.arange(logits.shape[-1])[None] != token[:, None]
      scored = jnp.where(certain & others, -jnp.inf, scaled)
    else:
      scored = logits
    log_probs = jax.nn.log_softmax(scored)
    return token, jnp.take_along_axis(
        log_probs, token[:, None], axis=-1)[:, 0]

  def _filtered(self, logits: Float[Array, 'R V']) -> Float[Array, 'R V']:
    """The logits that top-k or top-p leaves."""
    if self.topk:
      return topk_mask(logits, self.topk)
    if isinstance(self.topp, jax.Array) or self.topp:
      return topp_mask(logits, self.topp)
    return logits


def per_decode(value: Any, num_decodes: int) -> Any:
  """A number as it is, or an array of one per input repeated per decode."""
  if jnp.ndim(value) == 0:
    return value
  return jnp.repeat(jnp.asarray(value), num_decodes)


@keyword_options.fields_of(Sampling)
def temperature_sample(
    inputs: Int[Array, 'B S'],
    cache: decoding_state.Cache,
    tokens_to_logits: decoding_state.TokensToLogits,
    eos_id: int,
    decode_rng: Array | None = None,
    num_decodes: int = 1,
    temperature: float | Array = 1.0,
    topk: int = 1,
    **options: Any,
) -> tuple[Int[Array, 'B n S'], Float[Array, 'B n']]:
  """Samples one token after another; the default, `topk=1`, is greedy.

  It ends when every row has ended: at its end token, at its last step, or at
  the end of `inputs`. One row of prompt a b, in the cache from the start
  (`initial_index` 2) or forced step by step (None):

    inputs      0  a  b  .  .  .
    decodes     a  b  x  y  e  .

  Args:
    inputs: `[:, 0]` is the start token; later non-zero tokens are forced.
    cache: the model's cache, one row per input.
    tokens_to_logits: scores the next position.
    eos_id: a row that has produced it is continued with zeros.
    decode_rng: key; defaults to key 0.
    num_decodes: samples per input.
    temperature: see `Sampling`.
    topk: see `Sampling`.
    **options: further fields of `Sampling`.

  Returns:
    Samples in ascending order of log probability, and those log probabilities
    of the tokens that were not forced.

  Raises:
    ValueError: if both topk and topp are set.
  """
  sampling = Sampling(temperature=temperature, topk=topk, **options)
  batch, length = inputs.shape
  start = jnp.int32(0)
  if sampling.initial_index is not None:
    start = per_decode(
        jnp.asarray(sampling.initial_index, jnp.int32), num_decodes)
  tokens = jnp.repeat(inputs, num_decodes, axis=0)
  forced = decoding_state.forced_next(tokens)
  steps = sampling.steps(num_decodes)
  last = (jnp.int32(length) if steps is None
          else decoding_state.last_position(forced, start, steps))
  expand = functools.partial(
      decoding_state.flat_batch_beam_expand, beam_size=num_decodes,
      offset=sampling.cache_offset)
  initial = SamplingLoopState(
      step=jnp.int32(0),
      cur_index=start,
      sequences=decoding_state.prompts_of(forced, start),
      cache=decoding_state.cache_map(
          expand, cache, apply_to_index=sampling.initial_index is not None),
      cur_token=decoding_state.token_at(tokens, start)[:, None],
      ended=jnp.broadcast_to(start >= last, tokens.shape[:1]),
      rng=jax.random.key(0) if decode_rng is None else decode_rng,
      log_prob=jnp.zeros(tokens.shape[:1], jnp.float32))
  final = jax.lax.while_loop(
      lambda state: ~jnp.all(state.ended),
      functools.partial(
          _sample_next, sampling=sampling, forced=forced, last=last,
          tokens_to_logits=tokens_to_logits, eos_id=eos_id,
          temperature=per_decode(temperature, num_decodes)),
      initial)
  log_prob = final.log_prob.reshape(batch, num_decodes)
  sequences = final.sequences.reshape(batch, num_decodes, length)
  order = jnp.argsort(log_prob, axis=1)
  return (jnp.take_along_axis(sequences, order[..., None], axis=1),
          jnp.take_along_axis(log_prob, order, axis=1))


def _sample_next(
    state: SamplingLoopState,
    *,
    sampling: Sampling,
    forced: Int[Array, 'R S'],
    last: Int[Array, '*R'],
    tokens_to_logits: decoding_state.TokensToLogits,
    eos_id: int,
    temperature: float | Array,
) -> SamplingLoopState:
  """One token more in every row that has not ended.

  Args:
    state: rows of which at least one has not ended.
    sampling: how to draw.
    forced: what must follow each position; 0 is free.
    last: the position before which rows end.
    tokens_to_logits: scores the next position.
    eos_id: ends a row.
    temperature: a number, or one per row.

  Returns:
    The state at the next position.
  """
  if sampling.state_callback_fn is not None:
    state = sampling.state_callback_fn(state)
  i = state.cur_index
  logits, cache = tokens_to_logits(decoding_state.DecodingState(
      cur_index=i, sequences=state.sequences, cur_token=state.cur_token,
      cache=state.cache))
  if sampling.logit_callback_fn is not None:
    logits = sampling.logit_callback_fn(logits, state)
  rng, key = jax.random.split(state.rng)
  token, score = sampling.draw(logits.astype(jnp.float32), temperature, key)
  given = decoding_state.token_at(forced, i)
  token = jnp.where(given > 0, given, token.astype(forced.dtype))
  token = jnp.where(state.ended, 0, token)
  drawn = ~state.ended & (given == 0)
  return state.replace(
      step=state.step + 1,
      cur_index=i + 1,
      sequences=decoding_state.put_token(state.sequences, i, token),
      cache=cache,
      cur_token=token[:, None],
      ended=state.ended | (drawn & (token == eos_id)) | (i + 1 >= last),
      rng=rng,
      log_prob=state.log_prob + jnp.where(drawn, score, 0.0))
