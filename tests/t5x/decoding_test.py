import functools
import inspect
import math
import re

from flax import core
import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from t5x import decoding
from t5x import decoding_state
from t5x import keyword_options

EOS = 1
ROWS, LENGTH, VOCAB = 20, 7, 8
REAL = -1e6  # Scores below belong to beams that no hypothesis has filled.


def random_table(rows=ROWS, length=LENGTH, vocab=VOCAB, seed=0):
  """Log probabilities `[row, position, current token, next token]`."""
  logits = np.random.default_rng(seed).normal(size=(rows, length, vocab, vocab))
  return scipy.special.log_softmax(1.5 * logits, axis=-1)


def starts(rows=ROWS, length=LENGTH, vocab=VOCAB):
  return np.pad(np.arange(rows)[:, None] % vocab, ((0, 0), (0, length - 1)))


@functools.cache
def compiled(strategy, options):
  """The strategy on a table; the cache says which row asks."""
  def run(table, inputs, traced):
    def tokens_to_logits(state):
      scores = table[
          state.cache['row'], state.cur_index, state.cur_token[:, 0]]
      return scores, state.cache

    cache = {'row': jnp.arange(len(inputs))}
    return strategy(
        inputs, cache, tokens_to_logits, EOS, **dict(options), **traced)

  # These run for milliseconds and compile for seconds.
  return jax.jit(run, compiler_options={'xla_backend_optimization_level': 0})


def decode(strategy, table, inputs, **options):
  """Decodes of a table, compiled once for all keys and length penalties."""
  traced = {name: options.pop(name) for name in list(options)
            if name in ('alpha', 'decode_rng')
            or isinstance(options[name], np.ndarray)}
  fn = compiled(strategy, frozenset(options.items()))
  tokens, scores = fn(np.float32(table), np.int32(inputs), traced)
  return np.asarray(tokens), np.asarray(scores)


greedy = functools.partial(decode, decoding.temperature_sample)
sample = functools.partial(decode, decoding.temperature_sample, topk=0)
beams = functools.partial(decode, decoding.beam_search)
some_samples = functools.partial(
    sample, num_decodes=20, temperature=0.7, topk=4)


def greedy_by_hand(table, inputs):
  """The most likely token after each; zeros after the end; its log prob."""
  results = []
  for row, given in zip(table, inputs, strict=True):
    tokens, score, current = [], 0.0, given[0]
    for i in range(len(given)):
      follows = given[i + 1] if i + 1 < len(given) else 0
      token = follows or int(np.argmax(row[i, current]))
      score += 0.0 if follows else row[i, current, token]
      tokens.append(token)
      if token == EOS and not follows:
        break
      current = token
    results.append((tokens + [0] * (len(given) - len(tokens)), score))
  return [np.array(column) for column in zip(*results, strict=True)]


def penalty(length, alpha):
  return ((5 + length) / 6) ** alpha


def finished(row, given, alpha):
  """Every hypothesis that ends, in ascending order: (score, tokens)."""
  length, vocab = len(given), row.shape[-1]
  ends, live = [], [(0.0, ())]
  for i in range(length):
    follows = given[i + 1] if i + 1 < length else 0
    grown = []
    for score, tokens in live:
      current = tokens[-1] if tokens else given[0]
      for token in [follows] if follows else range(vocab):
        more = 0.0 if follows else row[i, current, token]
        new = (score + more, (*tokens, token))
        if token == EOS and not follows:
          padded = new[1] + (0,) * (length - i - 1)
          ends.append((new[0] / penalty(i + 1, alpha), padded))
        else:
          grown.append(new)
    live = grown
  return sorted(ends)


def beams_by_hand(row, given, n, alpha):
  """Keeps n live and n ended of the 2n best at each step; never stops early."""
  length, vocab = len(given), row.shape[-1]
  ends, live = [], [(0.0, ())]
  for i in range(length):
    grown = sorted(
        ((score + row[i, tokens[-1] if tokens else given[0], token],
          (*tokens, token))
         for score, tokens in live for token in range(vocab)),
        reverse=True)[:2 * n]
    ends = sorted(ends + [
        (score / penalty(i + 1, alpha), tokens + (0,) * (length - i - 1))
        for score, tokens in grown if tokens[-1] == EOS], reverse=True)[:n]
    live = [grown_one for grown_one in grown if grown_one[1][-1] != EOS][:n]
  return sorted(ends or live)


def assert_hypotheses(tokens, scores, expected):
  """The best of one row's decodes are the expected ones."""
  count = min(len(expected), len(scores))
  np.testing.assert_allclose(
      scores[-count:], [score for score, _ in expected[-count:]],
      rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(
      tokens[-count:], [list(row) for _, row in expected[-count:]])


def test_greedy_is_the_loop_by_hand():
  table, inputs = random_table(), starts()
  expected_tokens, expected_scores = greedy_by_hand(table, inputs)
  tokens, scores = greedy(table, inputs, rescale_log_probs=False)
  np.testing.assert_array_equal(tokens[:, 0], expected_tokens)
  np.testing.assert_allclose(scores[:, 0], expected_scores, rtol=1e-5)


@pytest.mark.parametrize('options', [
    {'temperature': 9e-5, 'topk': 4}, {'temperature': 3.0}])
def test_cold_or_single_choice_sampling_is_greedy(options):
  table, inputs = random_table(), starts()
  tokens, scores = greedy(table, inputs, num_decodes=2, **options)
  expected, _ = greedy_by_hand(table, inputs)
  for copy in (0, 1):
    np.testing.assert_array_equal(tokens[:, copy], expected)
  # Of what the filter leaves, every token had probability one.
  np.testing.assert_array_equal(scores, 0.0)


# With 2 n >= V (V - 1)^(S - 1) nothing is ever dropped.
@pytest.mark.parametrize('alpha', [0.0, 0.6, 1.5])
@pytest.mark.parametrize('vocab,length,n', [
    (2, 4, 4), (3, 4, 15), (4, 3, 18)])
def test_enough_beams_find_what_enumeration_finds(vocab, length, n, alpha):
  rows = 25
  table = random_table(rows, length, vocab, seed=vocab + length)
  inputs = starts(rows, length, vocab)
  tokens, scores = beams(table, inputs, num_decodes=n, alpha=alpha)
  for row in range(rows):
    expected = finished(table[row], inputs[row], alpha)
    assert_hypotheses(tokens[row], scores[row], expected)
    assert np.sum(scores[row] > REAL) == len(expected)


@pytest.mark.parametrize('alpha', [0.0, 0.6, 2.0])
@pytest.mark.parametrize('n', [1, 2, 4])
def test_few_beams_keep_what_the_definition_keeps(n, alpha):
  table, inputs = random_table(seed=n), starts()
  tokens, scores = beams(table, inputs, num_decodes=n, alpha=alpha)
  for row in range(ROWS):
    expected = beams_by_hand(table[row], inputs[row], n, alpha)
    assert_hypotheses(tokens[row], scores[row], expected)


ASKED = []


def counting(strategy):
  """The strategy, noting the positions of each question to the model."""
  def run(inputs, cache, tokens_to_logits, *args, **options):
    def counted(state):
      jax.debug.callback(lambda i: ASKED.append(i.tolist()), state.cur_index)
      return tokens_to_logits(state)

    return strategy(inputs, cache, counted, *args, **options)

  return run


counting_sample = counting(decoding.temperature_sample)
counting_beam_search = counting(decoding.beam_search)


# A likely end makes the search stop; `beams_by_hand` always goes on.
@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('alpha', [0.0, 0.6, 1.0])
def test_early_stop_changes_nothing(alpha, seed):
  length, vocab, n = 20, 5, 2
  logits = random_table(1, length, vocab, seed=seed)
  logits[..., EOS] += 4.0
  table = scipy.special.log_softmax(logits, axis=-1)
  inputs = starts(1, length, vocab)
  ASKED.clear()
  tokens, scores = decode(
      counting_beam_search, table, inputs, num_decodes=n, alpha=alpha)
  jax.effects_barrier()
  assert sorted(ASKED) == list(range(len(ASKED))) and len(ASKED) < length
  assert_hypotheses(
      tokens[0], scores[0], beams_by_hand(table[0], inputs[0], n, alpha))


# The greedy path is dull at first and certain later: stopping at the first end
# that scores best so far would miss it, with a penalty and only with one.
@pytest.mark.parametrize('alpha,best', [
    (0.0, [1, 0, 0, 0, 0, 0, 0]), (2.0, [2, 2, 2, 1, 0, 0, 0])])
def test_search_goes_on_while_a_longer_hypothesis_can_still_win(alpha, best):
  probabilities = np.full_like(random_table(), 1e-6)
  probabilities[:, 0, :, EOS], probabilities[:, 0, :, 2] = 0.55, 0.45
  probabilities[:, 1:3, :, 2] = probabilities[:, 3:, :, EOS] = 1.0
  tokens, _ = beams(
      np.log(probabilities), starts(), num_decodes=1, alpha=alpha)
  np.testing.assert_array_equal(tokens[:, 0], [best] * ROWS)


# The end is either excluded or certain, as it is for a confident model. (Where
# it is only second best, a beam of one may keep it, and greedy never does.)
@pytest.mark.parametrize('end', [0, 3, None])
def test_one_beam_without_penalty_is_greedy(end):
  logits = random_table(seed=3)
  logits[..., EOS] = -1e9
  if end is not None:
    logits[:, end, :, EOS] = 60.0
  table = scipy.special.log_softmax(logits, axis=-1)
  tokens, scores = beams(table, starts(), num_decodes=1, alpha=0.0)
  expected_tokens, expected_scores = greedy_by_hand(table, starts())
  np.testing.assert_array_equal(tokens[:, 0], expected_tokens)
  np.testing.assert_allclose(scores[:, 0], expected_scores, rtol=1e-5)


def test_rows_that_never_end_return_their_live_beams():
  logits, inputs = random_table(seed=4), starts()
  logits[::2, ..., EOS] = -1e9  # Rows 0, 2, 4, ... cannot end.
  tokens, scores = beams(logits, inputs, num_decodes=2, alpha=0.6)
  table = scipy.special.log_softmax(logits, axis=-1)
  for row in range(ROWS):
    assert_hypotheses(
        tokens[row], scores[row],
        beams_by_hand(table[row], inputs[row], 2, 0.6))
  ended = np.any(tokens == EOS, axis=-1)
  assert not ended[::2].any() and ended[1::2, -1].all()


# More beams than there are sequences: what fills the others never counts.
def test_beams_without_a_sequence_do_not_end():
  logits, inputs = random_table(10, 3, 3, seed=26), starts(10, 3, 3)
  logits[..., EOS] = -40.0  # Every end is given up.
  table = scipy.special.log_softmax(logits, axis=-1)
  tokens, scores = beams(
      table, inputs, num_decodes=12, alpha=0.6, min_log_prob=-30.0)
  assert np.all(np.sum(scores > REAL, axis=1) == 8)
  assert not np.any(tokens[:, 4:] == EOS)
  np.testing.assert_allclose(
      np.sum(np.exp(scores[:, 4:]), axis=1), 1.0, rtol=1e-5)
  assert all(len(np.unique(row, axis=0)) == 8 for row in tokens[:, 4:])


# Start, two given tokens (the second is the end of a sentence), free after.
FORCED = np.array([[0, 3, 1, 0, 0], [4, 2, 0, 0, 0], [2, 0, 0, 0, 0]])


def assert_forced(tokens):
  """Tokens `[B, n, S]` continue what `FORCED` gives."""
  assert np.all(tokens[0, :, :2] == [3, 1])
  assert np.all(tokens[1, :, :1] == 2)
  assert np.any(tokens[0, :, 2:] != 0)


def test_greedy_keeps_forced_tokens_and_scores_only_the_others():
  table = random_table(3, 5, 6, seed=5)
  tokens, scores = greedy(table, FORCED, rescale_log_probs=False)
  expected_tokens, expected_scores = greedy_by_hand(table, FORCED)
  assert_forced(tokens)
  np.testing.assert_array_equal(tokens[:, 0], expected_tokens)
  np.testing.assert_allclose(scores[:, 0], expected_scores, rtol=1e-5)


def test_samples_keep_forced_tokens():
  tokens, _ = some_samples(random_table(3, 5, 6, seed=6), FORCED)
  assert_forced(tokens)
  assert len(np.unique(tokens[0], axis=0)) > 2


@pytest.mark.parametrize('alpha', [0.0, 0.6])
def test_beams_keep_forced_tokens(alpha):
  n = 40
  table = random_table(3, 5, 6, seed=7)
  tokens, scores = beams(table, FORCED, num_decodes=n, alpha=alpha)
  for row in range(2):
    expected = finished(table[row], FORCED[row], alpha)
    assert_hypotheses(tokens[row], scores[row], expected[-10:])
  assert_forced(tokens[..., -10:, :])
  few, _ = beams(table, FORCED, num_decodes=2, alpha=alpha)
  assert_forced(few[:, -1:])


@pytest.mark.parametrize('strategy', [
    some_samples, functools.partial(beams, num_decodes=2, alpha=0.6)],
    ids=['sample', 'beams'])
def test_after_the_end_there_are_only_zeros(strategy):
  table = random_table(3, 5, 6, seed=8)
  tokens, scores = strategy(table, starts(3, 5, 6))
  after = np.cumsum(tokens == EOS, axis=-1) - (tokens == EOS) > 0
  assert np.any(after) and np.any(tokens[~after] > EOS)
  np.testing.assert_array_equal(tokens[after], 0)
  assert np.all(np.diff(scores, axis=1) >= 0)


def filtered(log_p, temperature, topk, topp):
  """What top-k and top-p leave of a softmax, by sorting."""
  p = scipy.special.softmax(log_p / temperature, axis=-1)
  keep = np.argsort(-p)
  if topk:
    keep = keep[:topk]
  if topp:
    keep = keep[:1 + np.searchsorted(np.cumsum(p[keep]), topp)]
  kept = np.zeros_like(p)
  kept[keep] = p[keep]
  return kept / kept.sum()


@pytest.mark.parametrize('temperature,topk,topp', [
    (0.6, 0, 0.0), (2.0, 5, 0.0), (1.0, 0, 0.6), (0.5, 0, 0.9), (2.0, 0, 0.05)])
def test_samples_follow_the_filtered_softmax(temperature, topk, topp):
  draws, vocab = 4000, 8
  table = random_table(1, 1, vocab, seed=9)
  tokens, scores = sample(
      table, [[0]], num_decodes=draws, temperature=temperature, topk=topk,
      topp=topp, decode_rng=jax.random.key(1))
  exact = filtered(table[0, 0, 0], temperature, topk, topp)
  counts = np.bincount(tokens[0, :, 0], minlength=vocab)
  assert np.all(counts[exact == 0] == 0)
  support = exact > 0
  if support.sum() > 1:
    assert scipy.stats.chisquare(
        counts[support], draws * exact[support]).pvalue > 1e-3
  np.testing.assert_allclose(
      scores[0], np.log(exact[tokens[0, :, 0]]), rtol=1e-4, atol=1e-5)


# The noise of a position is its own: pairs follow the product of both steps.
def test_successive_samples_are_independent():
  draws, vocab = 4000, 4
  table = random_table(2, 2, vocab, seed=10)
  table[..., EOS] = -1e9
  table = scipy.special.log_softmax(table, axis=-1)
  tokens, _ = sample(table, [[0, 0], [0, 0]], num_decodes=draws)
  allowed = [token for token in range(vocab) if token != EOS]
  for row in range(2):
    pairs = np.zeros((vocab, vocab))
    np.add.at(pairs, tuple(tokens[row].T), 1)
    exact = np.exp(table[row, 0, 0][:, None] + table[row, 1])
    pairs, exact = (x[np.ix_(allowed, allowed)] for x in (pairs, exact))
    assert pairs.sum() == draws
    assert scipy.stats.chisquare(
        pairs.ravel(), draws * exact.ravel() / exact.sum()).pvalue > 1e-3


@pytest.mark.parametrize('rescale', [True, False])
def test_a_sample_scores_the_tokens_up_to_its_end(rescale):
  table = random_table(3, 5, 6, seed=11)
  options = {} if rescale else {'rescale_log_probs': False}
  tokens, scores = some_samples(table, FORCED, **options)
  for row, copy in np.ndindex(3, 20):
    expected, current = 0.0, FORCED[row, 0]
    for i, token in enumerate(tokens[row, copy]):
      follows = FORCED[row, i + 1] if i < 4 else 0
      if not follows:
        log_p = table[row, i, current]
        p = filtered(log_p, 0.7, 4, 0.0) if rescale else np.exp(log_p)
        expected += math.log(p[token])
      current = token
      if token == EOS and not follows:
        break
    np.testing.assert_allclose(scores[row, copy], expected, rtol=1e-4)


def test_samples_depend_on_the_key_and_on_nothing_else():
  table, inputs = random_table(3, 5, 6, seed=12), starts(3, 5, 6)
  first, again, other = (
      some_samples(table, inputs, decode_rng=jax.random.key(key))[0]
      for key in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert np.any(first != other)


def test_the_largest_are_the_same_where_the_number_of_rows_is_open():
  rng = np.random.default_rng(0)
  # Many ties, of which the first counts, and what masks leave.
  x = rng.integers(-3, 3, (5, 40)).astype(np.float32)
  x[rng.random(x.shape) < 0.3] = -1e7
  open_rows = export.export(jax.jit(lambda x: decoding_state.top_k(x, 7)))(
      jax.ShapeDtypeStruct((export.symbolic_shape('b')[0], 40), jnp.float32))
  assert 'chlo.top_k' not in open_rows.mlir_module()
  for ours, jaxs in zip(open_rows.call(x), jax.lax.top_k(x, 7), strict=True):
    np.testing.assert_array_equal(ours, jaxs)


def test_top_k_with_top_p_is_refused():
  with pytest.raises(ValueError, match='topk is 4 and topp is 0.5'):
    sample(random_table(1, 2, 6), starts(1, 2, 6), topk=4, topp=0.5)


def of_history(history, row):
  """Logits that depend on every token so far, and on the input."""
  weights = np.random.default_rng(13).normal(size=(history.shape[-1], 6))
  seen = jnp.float32(history) @ jnp.float32(5 * weights)
  return 2 * jnp.sin(seen + jnp.float32(row)[:, None])


def from_sequences(inputs, n):
  """Reads the history from the state."""
  row = np.repeat(np.arange(len(inputs)), n)

  def tokens_to_logits(state):
    fed = jnp.concatenate(
        [np.repeat(inputs[:, :1], n, axis=0), state.sequences[:, :-1]], axis=1)
    past = jnp.arange(fed.shape[1]) <= state.cur_index
    return of_history(jnp.where(past[None], fed, 0), row), state.cache

  return tokens_to_logits, {}


def from_cache(inputs, axis):
  """Reads the history from a cache of two layers, filled as it goes."""
  def stored(x):
    return jnp.moveaxis(x, 0, axis)

  def tokens_to_logits(state):
    cache = state.cache['decoder']
    row, history = (jnp.moveaxis(cache[x], axis, 0) for x in ('row', 'history'))
    history = history.at[:, :, cache['cache_index']].set(state.cur_token)
    return of_history(history[:, 0], row[:, 1]), {'decoder': {
        'row': cache['row'], 'history': stored(history),
        'cache_index': cache['cache_index'] + 1}}

  rows, length = inputs.shape
  return tokens_to_logits, {'decoder': {
      'row': stored(jnp.tile(jnp.arange(rows)[:, None], (1, 2))),
      'history': stored(jnp.zeros((rows, 2, length), jnp.int32)),
      'cache_index': jnp.int32(0)}}


@pytest.mark.parametrize('strategy', [
    functools.partial(decoding.beam_search, num_decodes=3),
    functools.partial(decoding.temperature_sample, num_decodes=5, topk=0),
], ids=['beams', 'sample'])
def test_the_cache_follows_its_decode(strategy):
  inputs = np.int32([[0, 3, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0]])
  n = strategy.keywords['num_decodes']

  def run(tokens_to_logits, cache, **options):
    return jax.jit(lambda x: strategy(
        x, cache, tokens_to_logits, EOS, **options))(inputs)

  expected_tokens, expected_scores = run(*from_sequences(inputs, n))
  for axis in (0, 1):
    tokens, scores = run(*from_cache(inputs, axis), cache_offset=axis)
    np.testing.assert_array_equal(tokens, expected_tokens)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_a_cache_that_is_cut_over_devices_stays_where_it_is():
  mesh = jax.make_mesh(
      (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  inputs = jax.device_put(np.int32(starts(16, 7, 6)), cut)
  cache = {'key': jax.device_put(np.zeros((16, 7, 2, 5), np.float32), cut)}

  def tokens_to_logits(state):
    key = state.cache['key'] + jnp.float32(state.cur_token[..., None, None])
    return jnp.sum(jnp.sin(key), axis=(1, 2)), {'key': key}

  program = jax.jit(lambda inputs, cache: decoding.beam_search(
      inputs, cache, tokens_to_logits, EOS)).lower(inputs, cache).compile()
  gathered = re.findall(r'\w+\[([\d,]*)\]\S* all-gather', program.as_text())
  assert not [shape for shape in gathered if shape.count(',') > 2]


# Prompts of different lengths, by position of the first token to feed.
PROMPTS = np.array([
    [0, 3, 2, 4, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0], [2, 5, 0, 0, 0, 0, 0],
    [0, 2, 3, 4, 5, 2, 3]])
PREFILLED = np.array([3, 0, 1, 6])


# What is in the cache already is as good as what is forced step by step.
@pytest.mark.parametrize('start', [PREFILLED, np.array([1, 0, 0, 4])],
                         ids=['whole prompts', 'parts of prompts'])
@pytest.mark.parametrize('strategy', [
    functools.partial(decode, counting_sample, rescale_log_probs=False),
    functools.partial(decode, counting_beam_search, num_decodes=1, alpha=0.6),
    functools.partial(decode, counting_beam_search, num_decodes=3, alpha=0.6),
], ids=['greedy', 'one beam', 'beams'])
def test_prefilled_prompts_equal_forced_ones(strategy, start):
  table = random_table(4, 7, 6, seed=14)
  expected, expected_scores = strategy(table, PROMPTS)
  ASKED.clear()
  tokens, scores = strategy(table, PROMPTS, initial_index=start)
  jax.effects_barrier()
  np.testing.assert_array_equal(tokens, expected)
  np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
  assert len(ASKED) <= 7 - start.min()
  np.testing.assert_array_equal(
      sorted(ASKED)[0], np.repeat(start, scores.shape[1]))


def test_samples_continue_prefilled_prompts():
  table = random_table(4, 7, 6, seed=15)
  tokens, scores = some_samples(table, PROMPTS, initial_index=PREFILLED)
  for row, start in enumerate(PREFILLED):
    np.testing.assert_array_equal(
        tokens[row, :, :start],
        np.tile(PROMPTS[row, 1:start + 1], (len(tokens[row]), 1)))
  after = np.cumsum(tokens == EOS, axis=-1) - (tokens == EOS) > 0
  np.testing.assert_array_equal(tokens[after], 0)
  assert sum(len(np.unique(row, axis=0)) for row in tokens) > 10
  for copy in range(20):  # The last row has one place left.
    kept = filtered(table[3, 6, 3], 0.7, 4, 0.0)
    np.testing.assert_allclose(
        scores[3, copy], np.log(kept[tokens[3, copy, 6]]), rtol=1e-4)


@pytest.mark.parametrize('alpha', [0.0, 0.6, 1.5])
def test_enough_beams_find_all_continuations_of_prefilled_prompts(alpha):
  rows, length, vocab = 12, 5, 3
  rng = np.random.default_rng(16)
  table = random_table(rows, length, vocab, seed=16)
  start = rng.integers(0, length - 1, rows)
  inputs = np.where(
      np.arange(length) <= start[:, None],
      rng.choice([EOS, 2], (rows, length)), 0)
  inputs[:, 0] = rng.integers(0, vocab, rows)
  tokens, scores = beams(
      table, inputs, num_decodes=24, alpha=alpha, initial_index=start)
  for row in range(rows):
    expected = finished(table[row], inputs[row], alpha)
    assert_hypotheses(tokens[row], scores[row], expected)
    assert np.sum(scores[row] > REAL) == min(24, len(expected))


def cut(table, inputs, steps):
  """The table with no scores after the prompt and some steps."""
  ends = np.minimum(np.argmax(np.cumsum(inputs[:, 1:] > 0, 1), 1) + 1
                    - (inputs[:, 1:] == 0).all(1) + steps, inputs.shape[1])
  return [(table[i, :end], inputs[i, :end]) for i, end in enumerate(ends)]


@pytest.mark.parametrize('prefilled', [False, True])
@pytest.mark.parametrize('options,steps', [
    ({'max_decode_steps': 2}, 2),
    ({'max_decode_steps': 9, 'max_decode_steps_hard_limit': 3}, 3),
    ({'max_decode_steps': np.array([3, 0, 2, 1])}, np.array([3, 0, 2, 1])),
    ({'max_decode_steps': np.array([3, 0, 2, 1]),
      'max_decode_steps_hard_limit': 1}, np.array([1, 0, 1, 1]))])
def test_steps_count_from_the_end_of_the_prompt(options, steps, prefilled):
  table = random_table(4, 7, 6, seed=17)
  table[..., EOS] = -1e9
  table = scipy.special.log_softmax(table, axis=-1)
  if prefilled:
    options = options | {'initial_index': PREFILLED}
  tokens, scores = greedy(
      table, PROMPTS, num_decodes=2, rescale_log_probs=False, **options)
  for row, (part, inputs) in enumerate(cut(table, PROMPTS, steps)):
    end = len(inputs)
    expected, score = (greedy_by_hand(part[None], inputs[None]) if end
                       else (np.zeros((1, 0)), [0.0]))
    for copy in (0, 1):
      np.testing.assert_array_equal(tokens[row, copy, :end], expected[0])
      np.testing.assert_array_equal(tokens[row, copy, end:], 0)
      np.testing.assert_allclose(scores[row, copy], score[0], rtol=1e-5)


@pytest.mark.parametrize('prefilled', [{}, {'initial_index': PREFILLED}])
def test_beam_steps_count_from_the_end_of_the_prompt(prefilled):
  table = random_table(4, 7, 4, seed=18)
  prompts = np.minimum(PROMPTS, 3)
  tokens, scores = beams(
      table, prompts, num_decodes=9, alpha=0.6, max_decode_step=2, **prefilled)
  for row, (part, inputs) in enumerate(cut(table, prompts, 2)):
    expected = finished(part, inputs, 0.6)
    padding = (0,) * (7 - len(inputs))
    assert_hypotheses(tokens[row], scores[row], [
        (score, (*found, *padding)) for score, found in expected])
    assert np.sum(scores[row] > REAL) == len(expected)


@pytest.mark.parametrize('length', [2, 5])
def test_decodes_have_the_length_that_is_asked_for(length):
  table = random_table(10, 5, 3, seed=19)
  inputs = starts(10, 3, 3)
  tokens, scores = beams(
      table, inputs, num_decodes=16, alpha=1.0, max_decode_len=length)
  assert tokens.shape == (10, 16, length)
  for row in range(10):
    given = np.pad(inputs[row], (0, 2))[:length]
    assert_hypotheses(
        tokens[row], scores[row], finished(table[row], given, 1.0)[-16:])


def test_improbable_hypotheses_are_given_up():
  table, inputs = random_table(20, 4, 3, seed=20), starts(20, 4, 3)
  tokens, scores = beams(
      table, inputs, num_decodes=15, alpha=0.0, min_log_prob=-3.0)
  for row in range(20):
    expected = [x for x in finished(table[row], inputs[row], 0.0)
                if x[0] >= -3.0]
    assert_hypotheses(tokens[row], scores[row], expected)
    assert np.sum(scores[row] > REAL) == len(expected) > 0


# Row i ends at step i; the model is asked no more often than the longest needs.
@pytest.mark.parametrize('strategy', [counting_sample, counting_beam_search])
def test_decoding_stops_with_the_last_row(strategy):
  rows, length, vocab = 4, 20, 5
  logits = random_table(rows, length, vocab, seed=21)
  logits[..., EOS] = -1e9
  for row in range(rows):
    logits[row, row, :, EOS] = 60.0
  ASKED.clear()
  tokens, _ = decode(
      strategy, scipy.special.log_softmax(logits, axis=-1),
      starts(rows, length, vocab), num_decodes=1)
  jax.effects_barrier()
  assert sorted(ASKED) == list(range(rows))
  np.testing.assert_array_equal(
      np.argmax(tokens[:, 0] == EOS, axis=-1), range(rows))


def test_every_input_has_its_temperature():
  draws, vocab = 4000, 8
  table = np.tile(random_table(1, 1, vocab, seed=22), (4, 1, 1, 1))
  heat = np.array([0.5, 0.0, 2.0, 1.0], np.float32)
  tokens, scores = sample(
      table, np.zeros((4, 1)), num_decodes=draws, temperature=heat)
  for row in (0, 2, 3):
    exact = filtered(table[0, 0, 0], heat[row], 0, 0.0)
    counts = np.bincount(tokens[row, :, 0], minlength=vocab)
    assert scipy.stats.chisquare(counts, draws * exact).pvalue > 1e-3
    np.testing.assert_allclose(
        scores[row], np.log(exact[tokens[row, :, 0]]), rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(tokens[1], np.argmax(table[0, 0, 0]))
  np.testing.assert_array_equal(scores[1], 0.0)


# With `topp` traced one compilation serves all, zero included.
@pytest.mark.parametrize('topp', [0.0, 0.3, 0.9])
def test_top_p_can_be_traced(topp):
  table = random_table(1, 1, 8, seed=23)
  tokens, _ = sample(
      table, [[0]], num_decodes=2000, topp=np.array(topp, np.float32))
  exact = filtered(table[0, 0, 0], 1.0, 0, topp)
  counts = np.bincount(tokens[0, :, 0], minlength=8)
  np.testing.assert_array_equal(counts > 0, exact > 0)
  if np.sum(exact > 0) > 1:
    assert scipy.stats.chisquare(
        counts[exact > 0], 2000 * exact[exact > 0]).pvalue > 1e-3


def ban_two(logits, state):
  """Never token 2, until five tokens are there."""
  early = state.cur_index < 5
  return jnp.where(early & (jnp.arange(logits.shape[1])[None] == 2),
                   -1e9, logits)


def end_at_three(state):
  return state.replace(ended=state.ended | (state.step >= 3))


def test_callbacks_change_logits_and_state():
  table = random_table(seed=24)
  table[..., EOS] = -1e9
  table[..., 2] += 20.0
  tokens, _ = greedy(table, starts(), logit_callback_fn=ban_two)
  assert not np.any(tokens[..., :5] == 2) and np.all(tokens[..., 5:] == 2)
  short, _ = greedy(table, starts(), state_callback_fn=end_at_three)
  assert np.all(short[..., :3] == 2)
  np.testing.assert_array_equal(short[..., 3:], 0)


def test_masks_keep_the_best():
  logits = np.float32(np.random.default_rng(25).normal(size=(30, 9)))
  for k in (1, 4, 9, 20):
    kept = np.asarray(decoding.topk_mask(logits, k, -99.0))
    best = np.argsort(np.argsort(-logits, axis=1), axis=1) < k
    np.testing.assert_array_equal(kept, np.where(best, logits, -99.0))
  for p in (0.1, 0.5, 0.99):
    kept = np.asarray(decoding.topp_mask(logits, p, -99.0))
    for row, masked in zip(logits, kept, strict=True):
      exact = filtered(row, 1.0, 0, p)
      np.testing.assert_array_equal(masked, np.where(exact > 0, row, -99.0))


def test_caches_are_mapped_but_for_what_rows_share():
  cache = {'a': {'key': jnp.ones(2), 'cache_index': jnp.int32(1)},
           'cached_bias': jnp.ones(2), 'position_embedder_index': jnp.int32(1)}
  mapped = decoding.cache_map(lambda x: x + 1, cache)
  assert mapped['a']['key'][0] == 2 and mapped['a']['cache_index'] == 1
  again = decoding.cache_map(lambda x: x + 1, core.freeze(cache), True)
  assert isinstance(again, core.FrozenDict)
  assert again['a']['cache_index'] == 2
  for found in (mapped, again):
    assert found['cached_bias'][0] == 1
    assert found['position_embedder_index'] == 1


@pytest.mark.parametrize('offset', [0, 1])
def test_beams_of_a_row_stand_next_to_each_other(offset):
  x = jnp.moveaxis(jnp.arange(6).reshape(2, 3), 0, offset)
  flat = decoding.flat_batch_beam_expand(x, 2, offset)
  np.testing.assert_array_equal(
      jnp.moveaxis(flat, offset, 0), np.arange(6).reshape(2, 3)[[0, 0, 1, 1]])
  apart = decoding.unflatten_beam_dim(flat, 2, 2, offset)
  np.testing.assert_array_equal(decoding.add_beam_dim(x, 2, offset), apart)
  np.testing.assert_array_equal(
      decoding.flatten_beam_dim(apart, offset), flat)


# T5X's parameters in its order, of which the first eight may be positional.
@pytest.mark.parametrize('strategy,published', [
    (decoding.temperature_sample, (
        'inputs cache tokens_to_logits eos_id decode_rng num_decodes '
        'temperature topk topp cache_offset initial_index max_decode_steps '
        'max_decode_steps_hard_limit rescale_log_probs state_callback_fn '
        'logit_callback_fn')),
    (decoding.beam_search, (
        'inputs cache tokens_to_logits eos_id num_decodes alpha '
        'max_decode_len max_decode_step min_log_prob decode_rng cache_offset '
        'initial_index'))])
def test_parameters_are_t5xs(strategy, published):
  names = published.split()
  positional = list(inspect.signature(strategy).parameters)[:-1]
  assert positional == names[:8]
  assert keyword_options.names(strategy) - {'options'} == {*names}
