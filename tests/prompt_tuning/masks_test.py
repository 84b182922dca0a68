import itertools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from prompt_tuning import masks
from prompt_tuning import prompts
from prompt_tuning.train import prompts as train_prompts
import pytest
from t5x.examples.t5 import sequence as sequence_lib

# Rows without padding, with some, with nothing else; a hole in the last one.
TOKENS = np.array([
    [5, 6, 7, 8, 1],
    [9, 4, 1, 0, 0],
    [0, 0, 0, 0, 0],
    [3, 0, 2, 1, 0],
], np.int32)
# How many places of each row may be seen from everywhere.
PREFIX = np.array([
    [1, 1, 1, 0, 0],
    [1, 0, 0, 0, 0],
    [0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1],
], np.int32)
LENGTHS = [0, 1, 3]


def allowed_pairs(length, allowed):
  """A mask by definition: one question per row, query and key."""
  rows, size = len(TOKENS), length + TOKENS.shape[1]
  expected = np.zeros((rows, 1, size, size), np.float32)
  for row, query, key in itertools.product(
      range(rows), range(size), range(size)):
    expected[row, 0, query, key] = allowed(row, query, key)
  return expected


def is_token(length, tokens, row, place):
  return place < length or tokens[row, place - length] > 0


@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('multitask', [False, True])
@pytest.mark.parametrize('dtype', [np.int32, np.uint8])
def test_fake_prompt_is_ones_in_front(length, multitask, dtype):
  fake = masks.add_fake_prompt(length, multitask=multitask)
  expected = [[1] * length + row[1 if multitask else 0:]
              for row in TOKENS.tolist()]
  np.testing.assert_array_equal(
      jax.jit(fake)(TOKENS.astype(dtype)), np.array(expected, dtype),
      strict=True)


@pytest.mark.parametrize('length', LENGTHS)
def test_encoder_mask_joins_what_is_no_padding(length):
  mask = jax.jit(masks.create_prompt_encoder_mask(length))(TOKENS)
  expected = allowed_pairs(
      length, lambda row, query, key: (
          is_token(length, TOKENS, row, query)
          and is_token(length, TOKENS, row, key)))
  np.testing.assert_array_equal(mask, expected, strict=True)


@pytest.mark.parametrize('length', LENGTHS)
def test_decoder_only_mask_is_causal(length):
  mask = masks.create_prompt_decoder_only_mask(length)(
      decoder_target_tokens=TOKENS, decoder_causal_attention=None)
  expected = allowed_pairs(
      length, lambda row, query, key: (
          key <= query
          and is_token(length, TOKENS, row, query)
          and is_token(length, TOKENS, row, key)))
  np.testing.assert_array_equal(mask, expected, strict=True)


@pytest.mark.parametrize('length', LENGTHS)
def test_decoder_only_mask_has_the_prompt_in_its_prefix(length):
  mask = jax.jit(masks.create_prompt_decoder_only_mask(length))(
      decoder_target_tokens=TOKENS, decoder_causal_attention=PREFIX)

  def allowed(row, query, key):
    in_prefix = (is_token(length, PREFIX, row, query)
                 and is_token(length, PREFIX, row, key))
    return ((key <= query or in_prefix)
            and is_token(length, TOKENS, row, query)
            and is_token(length, TOKENS, row, key))

  np.testing.assert_array_equal(
      mask, allowed_pairs(length, allowed), strict=True)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.bool_, jnp.int32])
def test_masks_come_in_the_dtype_asked_for(dtype):
  encoder = masks.create_prompt_encoder_mask(2)
  decoder = masks.create_prompt_decoder_only_mask(2)
  for asked, default in (
      (encoder(TOKENS, dtype=dtype), encoder(TOKENS)),
      (decoder(TOKENS, PREFIX, dtype=dtype), decoder(TOKENS, PREFIX))):
    assert asked.dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(asked, np.float32), default, strict=True)


@pytest.mark.parametrize('length', [1, 3])
def test_encoder_mask_agrees_with_the_sequence_that_the_network_masks(length):
  tokens = jnp.asarray(TOKENS)
  embedded = jnp.ones((*TOKENS.shape, 4))
  module = train_prompts.Prompt(
      prompt=prompts.Prompt(length, nn.initializers.ones),
      combine=train_prompts.prefix_prompt)
  extended, _ = module.init_with_output(
      jax.random.key(0), tokens,
      sequence_lib.Sequence.create(embedded, tokens > 0),
      method=train_prompts.extend)
  visible = np.asarray(extended.visible_from(extended))
  mask = np.asarray(masks.create_prompt_encoder_mask(length)(tokens)) > 0
  # The network lets padding look around; nobody looks at padding.
  queries = np.asarray(extended.valid)[:, None, :, None]
  np.testing.assert_array_equal(visible & queries, mask)
