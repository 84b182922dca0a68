"""Prompts of decoders: what they equal, what is scored, how they decode."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from prompt_tuning import prompts
from prompt_tuning.train import layers
from prompt_tuning.train import models as prompt_models
from prompt_tuning.train import prompts as train_prompts
import pytest
from t5x import models
from t5x import train_state
from t5x.examples.decoder_only import network as decoder_only
from t5x.examples.t5 import network

EOS, P, V, S = 1, 3, 13, 6
PROMPT = 'decoder/prompt/prompt/prompt'
SIZES = {'vocab_size': V, 'emb_dim': 8, 'num_heads': 2, 'head_dim': 4,
         'mlp_dim': 16, 'mlp_activations': ('gelu', 'linear'),
         'dropout_rate': 0.0}

# Inputs 4 5, 9 and none, then targets, as the converter of language models
# makes them.
TARGETS = np.array(
    [[4, 5, 7, 8, 1, 0], [9, 3, 2, 6, 5, 1], [6, 1, 0, 0, 0, 0]], np.int32)
BATCH = {
    'encoder_input_tokens': np.array(
        [[3, 4, 1, 0], [5, 6, 7, 1], [2, 1, 0, 0]], np.int32),
    'decoder_target_tokens': TARGETS,
    'decoder_input_tokens': np.pad(TARGETS, ((0, 0), (1, 0)))[:, :-1],
    'decoder_causal_attention': np.array(
        [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], np.int32),
    'decoder_loss_weights': np.array(
        [[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]], np.int32)}


class Vocabulary:
  eos_id = EOS


def prompted_decoder(length=P, **options):
  def make_prompt():
    return train_prompts.Prompt(prompts.Prompt(length), **options)

  return functools.partial(layers.PromptDecoder, prompt_factory=make_prompt)


def language_model(prompt=True, bidirectional=False, **changes):
  config = decoder_only.TransformerConfig(
      **SIZES | {'num_layers': 2} | changes)
  if not prompt:
    return models.DecoderOnlyModel(
        decoder_only.DecoderWrapper(config), Vocabulary(), None,
        inputs_bidirectional_attention=bidirectional)
  return prompt_models.PromptDecoderOnlyModel(
      P, layers.PromptDecoderOnly(config, prompted_decoder()), Vocabulary(),
      None, inputs_bidirectional_attention=bidirectional)


def encoder_decoder(prompt=True, **changes):
  config = network.T5Config(**SIZES | {
      'num_encoder_layers': 1, 'num_decoder_layers': 2} | changes)
  factory = {'decoder_factory': prompted_decoder()} if prompt else {}
  return models.EncoderDecoderModel(
      network.Transformer(config, **factory), Vocabulary(), Vocabulary(), None)


KINDS = {
    'causal': language_model,
    'prefix': functools.partial(language_model, bidirectional=True),
    'encoder-decoder': encoder_decoder}
every_kind = pytest.mark.parametrize('make', KINDS.values(), ids=KINDS.keys())


def described(model):
  variables = jax.eval_shape(
      lambda key: model.get_initial_variables(
          key, {name: x.shape for name, x in BATCH.items()}),
      jax.random.key(0))
  return train_state.flat(variables['params'])


def parameters_of(model, seed=0):
  rng = np.random.default_rng(seed)
  return {
      path: jnp.float32(rng.normal(size=box.value.shape)
                        / np.sqrt(box.value.shape[0]) + path.endswith('scale'))
      for path, box in sorted(described(model).items())}


def logits_of(model, parameters, batch):
  return np.asarray(jax.jit(model._compute_logits)(
      train_state.nested(parameters), batch))


@every_kind
def test_prompt_is_the_only_new_parameter(make):
  with_prompt = described(make())
  assert with_prompt.pop(PROMPT).value.shape == (P, 8)
  assert with_prompt.keys() == described(make(prompt=False)).keys()


# The prompt as P more words of the vocabulary, in front of the start token.
@every_kind
def test_prompt_equals_words_with_its_vectors(make):
  parameters = parameters_of(make())
  with_words = dict(parameters)
  (table,) = (path for path in parameters if 'token_embedder' in path)
  with_words[table] = np.concatenate(
      [parameters[table], with_words.pop(PROMPT)])
  with_words['decoder/logits_dense/kernel'] = np.pad(
      parameters['decoder/logits_dense/kernel'], ((0, 0), (0, P)))
  front = ((0, 0), (P, 0))
  words = np.tile(np.arange(V, V + P, dtype=np.int32), (3, 1))
  batch = BATCH | {
      'decoder_input_tokens': np.concatenate(
          [words, BATCH['decoder_input_tokens']], axis=1)} | {
              name: np.pad(BATCH[name], front, constant_values=1)
              for name in ('decoder_target_tokens', 'decoder_causal_attention')}
  expected = logits_of(make(prompt=False, vocab_size=V + P), with_words, batch)
  found = logits_of(make(), parameters, BATCH)
  assert found.shape == (3, S, V)  # The prompt itself is not scored.
  np.testing.assert_allclose(
      found, expected[:, P:, :V], rtol=1e-5, atol=1e-5)


def greedy_by_hand(model, parameters, starts):
  """Argmax after argmax, everything computed anew for each token."""
  rows, width = np.arange(3), S + 1
  inside = np.arange(width) <= starts[:, None]
  given = np.where(
      inside, np.pad(BATCH['decoder_input_tokens'], ((0, 0), (0, 1))), 0)
  answers = np.zeros((3, S), np.int32)
  compute = jax.jit(lambda batch: model._compute_logits(
      train_state.nested(parameters), batch))
  for i in range(S):
    place = np.minimum(starts + i, S - 1)
    logits = compute(BATCH | {
        'decoder_input_tokens': np.int32(given[:, :-1]),
        'decoder_target_tokens': np.ones((3, S), np.int32)})
    ended = (starts + i >= S) | np.any(answers == EOS, axis=1)
    best = np.asarray(logits)[rows, place].argmax(-1)
    answers[:, i] = np.where(ended, 0, best)
    given[rows, place + 1] = np.where(ended, given[rows, place + 1], best)
  return answers


@pytest.mark.parametrize('scan', [False, True])
@every_kind
def test_cached_decoding_equals_recomputing(make, scan):
  model = make(scan_layers=scan)
  parameters = parameters_of(model, seed=4)
  samples = isinstance(model, models.DecoderOnlyModel)
  predict = jax.jit(functools.partial(
      model.predict_batch_with_aux, num_decodes=2, return_all_decodes=True,
      decoder_params={} if samples else {'alpha': 0.0}))
  found, aux = predict(train_state.nested(parameters), BATCH)
  if samples:
    starts = np.sum(BATCH['decoder_causal_attention'], axis=1) - 1
    np.testing.assert_array_equal(
        found[:, -1], greedy_by_hand(model, parameters, starts))
  else:
    scores = [score_by_hand(model, parameters, tokens)
              for tokens in np.asarray(found).swapaxes(0, 1)]
    np.testing.assert_allclose(aux['scores'].T, scores, rtol=1e-4)
  other = parameters | {PROMPT: -parameters[PROMPT]}
  assert np.any(predict(train_state.nested(other), BATCH)[0] != found)


def score_by_hand(model, parameters, tokens):
  """Log likelihoods `[B]` of tokens up to their end."""
  logits = logits_of(model, parameters, BATCH | {
      'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
      'decoder_target_tokens': np.ones((3, S), np.int32)})
  chosen = np.take_along_axis(
      np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], -1)[..., 0]
  after = np.cumsum(tokens == EOS, axis=1) - (tokens == EOS) > 0
  return np.sum(np.where(after, 0.0, chosen), axis=1)


@every_kind
def test_gradient_reaches_every_vector(make):
  model = make()
  parameters = parameters_of(model)
  gradient = jax.jit(jax.grad(lambda prompt: model.loss_fn(
      train_state.nested(parameters | {PROMPT: prompt}), BATCH, None)[0]))(
          parameters[PROMPT])
  assert np.all(np.abs(gradient).max(axis=1) > 1e-4)


def test_a_prompt_of_another_length_is_refused():
  model = language_model()
  model.prompt_length = P + 1
  with pytest.raises(ValueError, match='prompt_length is 4.* has 3 places'):
    model.predict_batch(train_state.nested(parameters_of(model)), BATCH)


@pytest.mark.parametrize('combine', [
    train_prompts.suffix_prompt, train_prompts.prefix_prompt_after_bos])
def test_a_decoder_takes_prompts_in_front_only(combine):
  model = models.DecoderOnlyModel(layers.PromptDecoderOnly(
      decoder_only.TransformerConfig(**SIZES),
      prompted_decoder(combine=combine)), None, None)
  with pytest.raises(ValueError, match='in front of its tokens only'):
    described(model)


def test_any_module_can_be_the_prompt_of_a_decoder():
  class Doubled(nn.Module):
    prompt: nn.Module

    @nn.compact
    def __call__(self, x, x_embed):
      return 2.0 * self.prompt(x, x_embed)

  def make_prompt():
    return Doubled(train_prompts.Prompt(prompts.Prompt(P)))

  model = models.DecoderOnlyModel(layers.PromptDecoderOnly(
      decoder_only.TransformerConfig(**SIZES), functools.partial(
          layers.PromptDecoder, prompt_factory=make_prompt)), None, None)
  assert logits_of(model, parameters_of(model), BATCH).shape == (3, S, V)


def test_packed_rows_are_refused():
  batch = BATCH | {'decoder_segment_ids': np.ones((3, S), np.int32)}
  model = language_model()
  with pytest.raises(ValueError, match='[Pp]acked'):
    model._compute_logits(
        train_state.nested(parameters_of(model)), batch)


def test_prompt_factory_is_required():
  with pytest.raises(ValueError, match='prompt_factory is not set'):
    described(models.DecoderOnlyModel(layers.PromptDecoderOnly(
        decoder_only.TransformerConfig(**SIZES)), None, None))
