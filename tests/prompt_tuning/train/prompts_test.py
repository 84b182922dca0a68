import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from prompt_tuning import prompts
from prompt_tuning.train import prompts as train_prompts
import pytest
from t5x import train_state
from t5x.examples.t5 import sequence as sequence_lib

P, T, H = 2, 5, 4

# Ragged rows, the last token of each ends it; one full and one empty.
ENCODER_ROWS = np.array([
    [5, 6, 1, 0, 0],
    [7, 8, 9, 1, 0],
    [1, 0, 0, 0, 0],
    [4, 3, 2, 8, 1],
    [0, 0, 0, 0, 0],
], np.int32)
# The same behind the 0 that begins a decoder's row.
DECODER_ROWS = np.array([
    [0, 5, 6, 1, 0],
    [0, 7, 1, 0, 0],
    [0, 1, 0, 0, 0],
    [0, 3, 2, 8, 1],
    [0, 0, 0, 0, 0],
], np.int32)


def prefix(prompt, row, tokens):
  del tokens
  return prompt + row


def after_bos(prompt, row, tokens):
  del tokens
  return row[:1] + prompt + row[1:]


def suffix(prompt, row, tokens, *, decoder_only, before_eos):
  real = [t for t in tokens if t != 0]
  if decoder_only:
    real = ['begin', *real]
  if before_eos:
    real = real[:-1]
  return row[:len(real)] + prompt + row[len(real):]


def suffix_case(tokens, **switches):
  return (functools.partial(train_prompts.suffix_prompt, **switches),
          functools.partial(suffix, **switches), tokens)


# Combination, the same on one row as a list, tokens.
COMBINERS = {
    'prefix': (train_prompts.prefix_prompt, prefix, ENCODER_ROWS),
    'after BOS': (
        train_prompts.prefix_prompt_after_bos, after_bos, DECODER_ROWS),
    'suffix': (
        train_prompts.suffix_prompt,
        functools.partial(suffix, decoder_only=False, before_eos=True),
        ENCODER_ROWS),
    'suffix after EOS': suffix_case(
        ENCODER_ROWS, decoder_only=False, before_eos=False),
    'suffix before EOS': suffix_case(
        ENCODER_ROWS, decoder_only=False, before_eos=True),
    'decoder suffix after EOS': suffix_case(
        DECODER_ROWS, decoder_only=True, before_eos=False),
    'decoder suffix before EOS': suffix_case(
        DECODER_ROWS, decoder_only=True, before_eos=True),
}
every_combiner = pytest.mark.parametrize('name', COMBINERS)


def inputs(tokens, length=P):
  """A prompt per row and embedded tokens, every number in them different."""
  rows = len(tokens)
  numbers = np.arange(1, 1 + rows * (length + T) * H, dtype=np.float32)
  numbers = numbers.reshape(rows, length + T, H)
  return numbers[:, :length], numbers[:, length:]


def row_by_row(reference, prompt, embedded, tokens):
  return np.array([
      reference(list(p), list(e), t.tolist())
      for p, e, t in zip(prompt, embedded, tokens, strict=True)])


@every_combiner
@pytest.mark.parametrize('length', [1, 2, 7])
def test_combiner_places_rows_as_lists_would(name, length):
  combine, reference, tokens = COMBINERS[name]
  prompt, embedded = inputs(tokens, length)
  combined = combine(jnp.asarray(prompt), jnp.asarray(embedded),
                     jnp.asarray(tokens))
  np.testing.assert_array_equal(
      combined, row_by_row(reference, prompt, embedded, tokens), strict=True)


@every_combiner
def test_law_every_place_comes_once_and_compiled_equals_eager(name):
  combine, _, tokens = COMBINERS[name]
  prompt, embedded = inputs(tokens)
  eager = combine(jnp.asarray(prompt), jnp.asarray(embedded),
                  jnp.asarray(tokens))
  np.testing.assert_array_equal(
      np.sort(np.ravel(eager)),
      np.sort(np.concatenate([np.ravel(prompt), np.ravel(embedded)])))
  np.testing.assert_array_equal(
      jax.jit(combine)(prompt, embedded, tokens), eager)


@every_combiner
def test_law_padding_stays_behind(name):
  combine, _, tokens = COMBINERS[name]
  padded = np.concatenate([tokens, np.zeros_like(tokens)], axis=1)
  prompt, embedded = inputs(tokens)
  more = np.concatenate([embedded, -embedded], axis=1)
  np.testing.assert_array_equal(
      combine(jnp.asarray(prompt), jnp.asarray(more),
              jnp.asarray(padded))[:, :P + T],
      combine(jnp.asarray(prompt), jnp.asarray(embedded),
              jnp.asarray(tokens)))


def module(combine=train_prompts.prefix_prompt, **options):
  return train_prompts.Prompt(
      prompt=prompts.Prompt(
          length=P, prompt_init=nn.initializers.normal(1.0), **options),
      combine=combine)


@every_combiner
def test_module_gives_every_row_the_same_prompt(name):
  combine, reference, tokens = COMBINERS[name]
  _, embedded = inputs(tokens)
  combined, variables = module(combine).init_with_output(
      jax.random.key(0), jnp.asarray(tokens), jnp.asarray(embedded))
  parameters = train_state.flat(nn.meta.unbox(variables['params']))
  assert list(parameters) == ['prompt/prompt']
  prompt = np.stack([parameters['prompt/prompt']] * len(tokens))
  np.testing.assert_array_equal(
      combined, row_by_row(reference, prompt, embedded, tokens), strict=True)


@every_combiner
def test_extending_moves_validity_with_the_embeddings(name):
  combine, reference, tokens = COMBINERS[name]
  tokens = tokens[tokens.any(axis=1)]  # A row of nothing has no place for it.
  _, embedded = inputs(tokens)
  # Real places are those up to the last token; a decoder begins with a 0.
  valid = np.flip(np.cumsum(np.flip(tokens, 1), 1), 1) > 0
  if 'decoder' in name:
    valid[:, 0] = True
  sequence = sequence_lib.Sequence.create(
      jnp.asarray(embedded), jnp.asarray(valid))
  layer = module(combine)
  variables = layer.init(
      jax.random.key(0), jnp.asarray(tokens), jnp.asarray(embedded))
  extended = layer.apply(
      variables, jnp.asarray(tokens), sequence, method=train_prompts.extend)
  np.testing.assert_array_equal(
      extended.x, layer.apply(
          variables, jnp.asarray(tokens), jnp.asarray(embedded)))
  marks = np.ones((len(tokens), P), bool)
  np.testing.assert_array_equal(
      extended.valid, row_by_row(reference, marks, valid, tokens), strict=True)
  np.testing.assert_array_equal(
      np.broadcast_to(extended.positions, (len(tokens), P + T)),
      [list(range(P + T))] * len(tokens))
  assert extended.segments is None


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_prompt_takes_the_dtype_of_the_input(dtype):
  _, embedded = inputs(ENCODER_ROWS)
  combined, _ = module(dtype=dtype).init_with_output(
      jax.random.key(0), jnp.asarray(ENCODER_ROWS),
      jnp.asarray(embedded, jnp.bfloat16))
  assert combined.dtype == jnp.bfloat16


def test_packed_rows_are_refused():
  tokens = jnp.asarray(ENCODER_ROWS)
  packed = sequence_lib.Sequence.create(
      jnp.ones((*tokens.shape, H)), tokens > 0, segments=jnp.ones_like(tokens))
  layer = module()
  with pytest.raises(ValueError, match=r'[Pp]acked.*DatasetConfig.pack'):
    layer.init(jax.random.key(0), tokens, packed, method=train_prompts.extend)
