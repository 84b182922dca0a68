"""Our T5, with and without a prompt, equals that of Hugging Face transformers.

golden/parity.npz holds what theirs does at a tiny size; golden/make_parity.py
wrote it. Where torch and transformers are installed the script runs again, with
other random numbers, and the same is asked of its new arrays.
"""

from collections.abc import Mapping
import functools
import importlib.util
import pathlib
import types

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from prompt_tuning import prompts
from prompt_tuning.train import layers as prompt_layers
from prompt_tuning.train import prompts as train_prompts
import pytest
from t5x import decoding
from t5x import models
from t5x.examples.t5 import attention
from t5x.examples.t5 import network

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
LIVE_SEED = 2  # The golden arrays have seed 0.
PROMPT = ('encoder', 'prompt', 'prompt', 'prompt')
TOKENS = (
    'encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')
SIDES = [('plain', ''), ('prompted', 'prompted_')]

# Written out here, not taken from the other side's configuration.
SIZES = {
    'vocab_size': 64, 'emb_dim': 16, 'mlp_dim': 24, 'head_dim': 4,
    'num_encoder_layers': 2, 'num_decoder_layers': 3,
    'relpos_num_buckets': 8, 'relpos_max_distance': 20,
}
CONFIGS = {
    't5_1_1': network.T5Config(
        **SIZES, num_heads=3, mlp_activations=('gelu', 'linear'),
        logits_via_embedding=False),
    't5_1_0': network.T5Config(
        **SIZES, num_heads=4, mlp_activations=('relu',),
        logits_via_embedding=True),
}

Arrays = Mapping[str, np.ndarray]


class Case:
  """One model: our side built around the arrays of the other side."""

  def __init__(self, config: network.T5Config, arrays: Arrays):
    self.arrays = arrays
    self.vocabulary = types.SimpleNamespace(eos_id=int(arrays['eos_id']))
    self.batch = {name: jnp.asarray(arrays[name]) for name in TOKENS}
    self.batch['decoder_loss_weights'] = jnp.asarray(
        arrays['decoder_target_tokens'] > 0, jnp.int32)
    flat = {tuple(key.split('/')[1:]): jnp.asarray(x)
            for key, x in arrays.items() if key.startswith('params/')}
    self.plain = Side(self, network.Transformer(config), flat)
    self.prompted = Side(
        self, prompted_network(config, len(arrays['prompt'])),
        {**flat, PROMPT: jnp.asarray(arrays['prompt'])})


class Side:
  """Our model with its parameters, with or without the prompt."""

  def __init__(self, case: Case, module: network.Transformer, flat: Mapping):
    self.params = traverse_util.unflatten_dict(flat)
    self.batch = case.batch
    self.model = models.EncoderDecoderModel(
        module, case.vocabulary, case.vocabulary, optimizer_def=None,
        decode_fn=decoding.temperature_sample, z_loss=0.0)

  def loss(self, params: Mapping) -> jax.Array:
    return self.model.loss_fn(params, self.batch, dropout_rng=None)[0]

  @functools.cached_property
  def outputs(self) -> Mapping[str, jax.Array]:
    """What the targets' logits and losses are, in one compilation."""
    @jax.jit
    def compute(params):
      return {
          'logits': self.model.module.apply(
              {'params': params}, *(self.batch[name] for name in TOKENS),
              enable_dropout=False),
          'loss': self.loss(params),
          'row_losses': -self.model.score_batch(params, self.batch)}

    return compute(self.params)


def prompted_network(config: network.T5Config, length: int):
  """The network with a prompt in its encoder."""
  def prompt():
    return train_prompts.Prompt(prompt=prompts.Prompt(length=length))

  return prompt_layers.PromptEncoderDecoder(
      config, encoder_factory=functools.partial(
          prompt_layers.PromptEncoder, prompt_factory=prompt))


@functools.cache
def _golden() -> dict[str, dict[str, np.ndarray]]:
  """The arrays in the file, by model."""
  made = {}
  with np.load(GOLDEN / 'parity.npz') as file:
    for key in file.files:
      if key != 'made_with':
        model, name = key.split('/', maxsplit=1)
        made.setdefault(model, {})[name] = file[key]
  return made


@functools.cache
def _live() -> dict[str, dict[str, np.ndarray]]:
  """The same from the other implementation itself."""
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  spec = importlib.util.spec_from_file_location(
      'make_parity', GOLDEN / 'make_parity.py')
  make_parity = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(make_parity)
  return make_parity.make(LIVE_SEED)


@pytest.fixture(scope='module', params=[_golden, _live])
def reference(request):
  return request.param()


@pytest.fixture(scope='module', params=CONFIGS)
def case(reference, request):
  return Case(CONFIGS[request.param], reference[request.param])


def assert_close(ours, theirs, tolerance, valid=...):
  """At valid places no further apart than a share of the largest value."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(
      ours[valid], theirs[valid], rtol=0,
      atol=tolerance * np.max(np.abs(theirs[valid])))


def test_every_parameter_has_their_shape(case):
  def init():
    return nn.unbox(case.prompted.model.get_initial_variables(
        jax.random.key(0), {name: case.batch[name].shape for name in TOKENS}))

  def shapes(params):
    return {path: x.shape
            for path, x in traverse_util.flatten_dict(params).items()}

  ours = jax.eval_shape(init)['params']
  assert shapes(ours) == shapes(case.prompted.params)


def test_relative_position_buckets_of_the_published_sizes(reference):
  theirs = reference['buckets']
  for stack, bidirectional in (('encoder', True), ('decoder', False)):
    ours = attention.relative_position_bucket(
        jnp.asarray(theirs['relative_position']), bidirectional=bidirectional,
        num_buckets=32, max_distance=128)
    np.testing.assert_array_equal(ours, theirs[stack])


def test_encoder_states(case):
  encode = jax.jit(functools.partial(
      case.plain.model.module.apply, enable_dropout=False, method='encode'))
  encoded = encode(
      {'params': case.plain.params}, case.batch['encoder_input_tokens'])
  valid = case.arrays['encoder_input_tokens'] > 0
  np.testing.assert_array_equal(encoded.valid, valid)
  assert_close(encoded.x, case.arrays['encoded'], 1e-5, valid)


@pytest.mark.parametrize('side,prefix', SIDES)
def test_logits(case, side, prefix):
  ours = getattr(case, side).outputs['logits']
  assert_close(ours, case.arrays[f'{prefix}logits'], 1e-5,
               case.arrays['decoder_target_tokens'] > 0)


@pytest.mark.parametrize('side,prefix', SIDES)
def test_loss_is_their_cross_entropy_summed_over_tokens(case, side, prefix):
  ours = getattr(case, side).outputs
  theirs = case.arrays[f'{prefix}row_losses']
  assert_close(ours['loss'], theirs.sum(), 1e-5)
  assert_close(ours['row_losses'], theirs, 1e-5)


def test_gradient_of_the_prompt(case):
  flat = traverse_util.flatten_dict(case.prompted.params)

  def loss(prompt):
    return case.prompted.loss(
        traverse_util.unflatten_dict({**flat, PROMPT: prompt}))

  assert_close(jax.jit(jax.grad(loss))(flat[PROMPT]),
               case.arrays['prompt_gradient'], 1e-4)


def test_greedy_tokens(case):
  predict = jax.jit(case.prompted.model.predict_batch)
  theirs = case.arrays['greedy_tokens']
  ended = (theirs == case.arrays['eos_id']).any(axis=1)
  assert ended.any() and not ended.all()
  np.testing.assert_array_equal(
      predict(case.prompted.params, case.batch), theirs)
