"""Our T5 equals transformers', and our prompts PEFT's, in every variant.

golden/parity.npz holds what theirs do at a tiny size; golden/make_parity.py
wrote it and says what it holds. Where the `parity` extra is installed the
script runs again, with other random numbers, and the same is asked of its new
arrays. The largest errors of every variant as a table:

    pytest -rP -k figures tests/t5x/parity_test.py
"""

from collections.abc import Iterator, Mapping
import functools
import importlib.util
import pathlib
import sys
import types

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from prompt_tuning import prompts
from prompt_tuning.train import layers as prompt_layers
from prompt_tuning.train import prompts as train_prompts
import pytest
from t5x import adafactor
from t5x import beam_search
from t5x import decoding
from t5x import models
from t5x import optimizers
from t5x import train_state
from t5x.examples.t5 import attention
from t5x.examples.t5 import network

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
LIVE_SEED = 2  # The golden arrays have seed 0.
PROMPT = 'encoder/prompt/prompt/prompt'
TOKENS = (
    'encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')
BATCHES = ('padded', 'full')
PEFT = ('peft_1', 'peft_2')  # One and two num_transformer_submodules.
SIDES = ('plain', *PEFT)

# Written out here, not taken from the other side's configuration.
SIZES = {
    'vocab_size': 64, 'emb_dim': 16, 'mlp_dim': 24, 'head_dim': 4,
    'num_encoder_layers': 2, 'num_decoder_layers': 2, 'num_heads': 4,
    'mlp_activations': ('gelu', 'linear'), 'logits_via_embedding': False,
    'relpos_num_buckets': 8, 'relpos_max_distance': 20, 'dropout_rate': 0.0,
}
CONFIGS = {name: network.T5Config(**SIZES | changes) for name, changes in {
    't5_1_0': {'mlp_activations': ('relu',), 'logits_via_embedding': True,
               'num_heads': 5, 'num_decoder_layers': 3},
    't5_1_1': {'num_heads': 3, 'num_decoder_layers': 3},
    'mt5': {},
    'byt5': {'vocab_size': 384, 'num_encoder_layers': 3,
             'num_decoder_layers': 1},
    'flan': {'relpos_num_buckets': 32, 'relpos_max_distance': 128},
}.items()}
OPTIMIZERS = {
    'sgd': (optimizers.sgd(0.1), 0, 0.1),
    'adam': (optimizers.adam(0.1), 0, 0.1),
    # The published recipe from the published step. Its rate is a tenth, as what
    # is near the sign of a gradient makes much of how a small one is rounded;
    # its decay is a hundredfold, as five steps would not show it.
    'adafactor': (adafactor.Adafactor(
        multiply_by_parameter_scale=False, weight_decay_rate=1e-3),
                  1_100_000, 0.03),
    'factored_adafactor': (
        adafactor.Adafactor(min_dim_size_to_factor=1), 0, 0.1),
}
# Largest error as a share of the largest value.
LIMITS = {
    'encoded': 1e-5, 'logits': 1e-5, 'loss': 1e-5, 'row_losses': 1e-5,
    'beam_scores': 1e-5, 'gradient': 1e-4, 'trained_losses': 1e-5,
    'trained_prompts': 1e-4}

Arrays = Mapping[str, np.ndarray]
Flat = Mapping[str, jax.Array]


class Side:
  """Our model with or without a prompt, compiled once for all batches."""

  def __init__(self, module: network.Transformer, flat: Flat):
    self.module = module
    self.flat = flat

  def model(self, eos_id, decode_fn) -> models.EncoderDecoderModel:
    vocabulary = types.SimpleNamespace(eos_id=eos_id)
    return models.EncoderDecoderModel(
        self.module, vocabulary, vocabulary, optimizer_def=None,
        decode_fn=decode_fn, z_loss=0.0,
        loss_normalizing_factor='NUM_REAL_TARGET_TOKENS')

  @functools.cached_property
  def forward(self):
    """From prompt and batch to states, losses and the prompt's gradient."""
    model = self.model(1, decoding.temperature_sample)

    @jax.jit
    def compute(prompt, batch):
      def loss(prompt):
        return model.loss_fn(self._params(prompt), batch, dropout_rng=None)[0]

      value, gradient = jax.value_and_grad(loss)(prompt)
      params = self._params(prompt)
      encoded = self.module.apply(
          {'params': params}, batch['encoder_input_tokens'],
          enable_dropout=False, method='encode')
      logits = self.module.apply(
          {'params': params}, *(batch[name] for name in TOKENS),
          enable_dropout=False)
      return {
          'loss': value, 'gradient': gradient, 'logits': logits,
          'encoded': encoded.x, 'encoded_valid': encoded.valid,
          'row_losses': -model.score_batch(params, batch)}

    return compute

  @functools.cached_property
  def greedy(self):
    """From prompt, batch and end token to tokens `[B, S]`."""
    @jax.jit
    def compute(prompt, batch, eos_id):
      model = self.model(eos_id, decoding.temperature_sample)
      return model.predict_batch(self._params(prompt), batch)

    return compute

  @functools.cached_property
  def beams(self):
    """To tokens `[B, 4, S]` and scores, the best first."""
    @jax.jit
    def compute(prompt, batch, eos_id, alpha):
      model = self.model(eos_id, decoding.beam_search)
      tokens, aux = model.predict_batch_with_aux(
          self._params(prompt), batch, num_decodes=4, return_all_decodes=True,
          decoder_params={'alpha': alpha})
      return tokens[:, ::-1], aux['scores'][:, ::-1]

    return compute

  def _params(self, prompt):
    flat = {path: prompt if path == PROMPT else x
            for path, x in self.flat.items()}
    return traverse_util.unflatten_dict(flat, sep='/')


class Case:
  """One variant: our side built around the arrays of the other side."""

  def __init__(self, config: network.T5Config, arrays: Arrays):
    self.arrays = arrays
    self.prompt = jnp.asarray(arrays['prompt'])
    self.batches = {name: self._batch(name) for name in BATCHES}
    flat = {key.removeprefix('params/'): jnp.asarray(x, jnp.float32)
            for key, x in arrays.items() if key.startswith('params/')}
    self.plain = Side(network.Transformer(config), flat)
    self.prompted = Side(prompted_network(config, len(self.prompt)),
                         {**flat, PROMPT: self.prompt})

  def _batch(self, name: str) -> Flat:
    batch = {key: jnp.asarray(self.arrays[f'batch/{name}/{key}'])
             for key in TOKENS}
    weights = jnp.asarray(batch['decoder_target_tokens'] > 0, jnp.int32)
    return {**batch, 'decoder_loss_weights': weights}

  def side(self, name: str) -> Side:
    """Ours for one of theirs."""
    return self.plain if name == 'plain' else self.prompted

  @functools.cached_property
  def outputs(self) -> Mapping[tuple[str, str], Arrays]:
    """What is computed of the given targets, by side and batch."""
    ours = {}
    for batch in BATCHES:
      for name in ('plain', 'peft_1'):
        ours[name, batch] = jax.device_get(
            self.side(name).forward(self.prompt, self.batches[batch]))
      ours['peft_2', batch] = ours['peft_1', batch]
    return ours

  def beams(self, side: str, batch: str, eos_id: int, alpha: float):
    """Our beams, best first, and their scores."""
    return jax.device_get(self.side(side).beams(
        self.prompt, self.batches[batch], jnp.int32(eos_id),
        jnp.float32(alpha)))

  @functools.cached_property
  def ended_beams(self) -> Mapping[tuple[str, str], tuple]:
    """Our hypotheses and their scores without a length penalty."""
    return {
        (side, batch): self.beams(
            side, batch, self.arrays[f'{side}/eos_id/beam'], alpha=0.0)
        for side in SIDES for batch in BATCHES}

  @functools.cached_property
  def trained(self) -> Mapping[str, tuple[list, list]]:
    """Losses before, and the prompt after every step, by optimiser."""
    trained = {}
    for name, (definition, first_step, rate) in OPTIMIZERS.items():
      rule = definition.transformation(
          lambda step, rate=rate: jnp.float32(rate), first_step)
      update = jax.jit(rule.update)
      params = {PROMPT: self.prompt}
      state = rule.init(params)
      losses, after = [], []
      for i in range(len(self.arrays[f'trained/{name}/losses'])):
        out = self.prompted.forward(
            params[PROMPT], self.batches[BATCHES[i % len(BATCHES)]])
        with jax.numpy_dtype_promotion('standard'):  # For optax's own code.
          updates, state = update({PROMPT: out['gradient']}, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(out['loss'])
        after.append(params[PROMPT])
      trained[name] = jax.device_get((jnp.stack(losses), jnp.stack(after)))
    return trained

  def pairs(self, quantity: str) -> Iterator[tuple[str, np.ndarray, Arrays]]:
    """What both sides have of a quantity: where, ours and theirs."""
    if quantity.startswith('trained_'):
      key = quantity.removeprefix('trained_')
      for name, found in self.trained.items():
        yield (name, found[key == 'prompts'],
               self.arrays[f'trained/{name}/{key}'])
      return
    for side in SIDES:
      for batch in BATCHES:
        place = f'{side}/{batch}'
        if f'{place}/{quantity}' in self.arrays:
          theirs = self.arrays[f'{place}/{quantity}']
          yield place, *self._chosen(quantity, side, batch, theirs)

  def _chosen(self, quantity: str, side: str, batch: str, theirs: np.ndarray):
    """Ours at the places that theirs has, and theirs."""
    if quantity == 'beam_scores':
      chosen = self.arrays[f'{side}/{batch}/beam_comparable']
      return self.ended_beams[side, batch][1][chosen], theirs[chosen]
    outputs = self.outputs[side, batch]
    ours = outputs[quantity]
    if quantity == 'encoded':
      ours = ours[outputs['encoded_valid']]
    if quantity == 'logits':
      ours = ours[np.asarray(self.batches[batch]['decoder_target_tokens']) > 0]
    return ours, theirs

  def errors(self, quantity: str) -> dict[str, float]:
    """The largest error as a share of the largest value, by place."""
    return {place: relative_error(ours, theirs)
            for place, ours, theirs in self.pairs(quantity)}


def prompted_network(config: network.T5Config, length: int):
  """The network with a prompt in its encoder."""
  def prompt():
    return train_prompts.Prompt(prompt=prompts.Prompt(length=length))

  return prompt_layers.PromptEncoderDecoder(
      config, encoder_factory=functools.partial(
          prompt_layers.PromptEncoder, prompt_factory=prompt))


def relative_error(ours, theirs) -> float:
  """The largest difference as a share of the largest value."""
  assert ours.shape == theirs.shape
  return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


@functools.cache
def _golden() -> dict[str, dict[str, np.ndarray]]:
  """The arrays in the file, by variant."""
  made = {}
  with np.load(GOLDEN / 'parity.npz') as file:
    for key in file.files:
      if key != 'made_with':
        variant, name = key.split('/', maxsplit=1)
        made.setdefault(variant, {})[name] = file[key]
  return made


@functools.cache
def _live() -> dict[str, dict[str, np.ndarray]]:
  """The same from the other implementations themselves."""
  for name in ('torch', 'transformers', 'peft'):
    pytest.importorskip(name)
  spec = importlib.util.spec_from_file_location(
      'make_parity', GOLDEN / 'make_parity.py')
  make_parity = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(make_parity)
  return make_parity.make(LIVE_SEED)


@functools.cache
def _case(get_reference, variant: str) -> Case:
  """One for all tests."""
  return Case(CONFIGS[variant], get_reference()[variant])


@pytest.fixture(scope='module', params=[_golden, _live])
def get_reference(request):
  request.param()  # Skips where it is not installed.
  return request.param


@pytest.fixture(scope='module', params=CONFIGS)
def case(get_reference, request):
  return _case(get_reference, request.param)


def test_every_parameter_has_their_shape(case):
  def init():
    model = case.prompted.model(1, decoding.temperature_sample)
    return nn.unbox(model.get_initial_variables(
        jax.random.key(0),
        {name: x.shape for name, x in case.batches['full'].items()}))

  ours = train_state.flat(jax.eval_shape(init)['params'])
  assert {path: x.shape for path, x in ours.items()} == {
      path: x.shape for path, x in case.prompted.flat.items()}


def test_relative_position_buckets_of_the_published_sizes(get_reference):
  theirs = get_reference()['buckets']
  for stack, bidirectional in (('encoder', True), ('decoder', False)):
    ours = attention.relative_position_bucket(
        jnp.asarray(theirs['relative_position']), bidirectional=bidirectional,
        num_buckets=32, max_distance=128)
    np.testing.assert_array_equal(ours, theirs[stack])


def test_bytes_are_those_of_their_tokenizer(get_reference):
  import seqio
  vocabulary = seqio.ByteVocabulary()
  texts = get_reference()['bytes']['texts'].tolist()
  arrays = get_reference()['byt5']
  rows = np.stack([arrays['batch/padded/encoder_input_tokens'],
                   np.pad(arrays['batch/padded/decoder_target_tokens'],
                          ((0, 0), (0, 4)))], axis=1).reshape(len(texts), -1)
  assert [[*vocabulary.encode(text), vocabulary.eos_id] for text in texts] == [
      row[row > 0].tolist() for row in rows]
  assert vocabulary.vocab_size <= CONFIGS['byt5'].vocab_size


@pytest.mark.parametrize('quantity', LIMITS)
def test_no_further_apart_than_the_limit(case, quantity):
  errors = case.errors(quantity)
  assert errors
  assert max(errors.values()) <= LIMITS[quantity], errors


def test_a_full_batch_has_no_padding_and_the_other_has(case):
  for name in TOKENS[::2]:
    assert (case.batches['full'][name] > 0).all()
    assert not (case.batches['padded'][name] > 0).all()


def test_all_padded_places_are_known_to_be_padding(case):
  inputs = np.asarray(case.batches['padded']['encoder_input_tokens']) > 0
  valid = case.outputs['peft_1', 'padded']['encoded_valid']
  np.testing.assert_array_equal(case.outputs['plain', 'padded'][
      'encoded_valid'], inputs)
  np.testing.assert_array_equal(
      valid, np.pad(inputs, ((0, 0), (len(case.prompt), 0)),
                    constant_values=True))


def test_rows_of_a_second_submodule_are_never_used_by_peft(case):
  # Why a prompt is taken from the first rows alone.
  for batch in BATCHES:
    assert case.arrays[f'peft_2/{batch}/unused_gradient'] == 0.0


@pytest.mark.parametrize('side', SIDES)
def test_greedy_tokens(case, side):
  eos_id = case.arrays[f'{side}/eos_id/greedy']
  ended = (case.arrays[f'{side}/padded/greedy_tokens'] == eos_id).any(axis=1)
  assert ended.any() and not ended.all()
  for batch in BATCHES:
    ours = case.side(side).greedy(
        case.prompt, case.batches[batch], jnp.int32(eos_id))
    np.testing.assert_array_equal(
        ours, case.arrays[f'{side}/{batch}/greedy_tokens'])


@pytest.mark.parametrize('side', SIDES)
def test_best_beams(case, side):
  compared = 0
  for batch in BATCHES:
    chosen = case.arrays[f'{side}/{batch}/beam_comparable']
    compared += chosen.sum()
    ours, _ = case.ended_beams[side, batch]
    np.testing.assert_array_equal(
        ours[chosen], case.arrays[f'{side}/{batch}/beam_tokens'][chosen])
  assert compared >= 8


@pytest.mark.parametrize('side', SIDES)
def test_all_beams_of_one_length_whatever_the_penalty(case, side):
  theirs = case.arrays[f'{side}/padded/endless_tokens']
  scores = case.arrays[f'{side}/padded/endless_scores']
  assert len({tuple(row) for rows in theirs for row in rows}) == (
      theirs.shape[0] * theirs.shape[1])
  # What did not end has its log probability as its score, in both.
  for alpha in (0.0, 0.6):
    tokens, ours = case.beams(side, 'padded', case.plain.module.config
                              .vocab_size, alpha)
    np.testing.assert_array_equal(tokens, theirs)
    np.testing.assert_allclose(ours, scores, rtol=1e-5)


def test_the_two_length_penalties_agree_at_no_exponent_but_zero():
  # ((5 + L) / 6)^alpha and L^length_penalty, both one at L = 1.
  lengths = jnp.arange(1, 30)
  np.testing.assert_array_equal(beam_search.brevity_penalty(0.0, lengths), 1.0)
  ours = jnp.log(beam_search.brevity_penalty(0.6, lengths))[1:]
  exponents = ours / jnp.log(lengths[1:].astype(jnp.float32))
  assert (np.diff(exponents) > 0).all()


def test_steps_of_the_trainer(get_reference, tiny):
  # Twice the rows, for eight devices: neither loss nor gradient change.
  case = _case(get_reference, 't5_1_1')
  definition, first_step, rate = OPTIMIZERS['adafactor']
  model = case.prompted.model(1, decoding.temperature_sample)
  model.optimizer_def = tiny.optimizer('.*/prompt/.*', definition=definition)
  trainer = tiny.trainer(
      model, first_step=first_step,
      learning_rate_fn=lambda step: jnp.float32(rate))
  infos = tiny.infos(model)
  placement = train_state.shardings(infos, trainer.partitioner)
  state = train_state.create(
      first_step,
      # By way of the host: what is trained is donated.
      jax.device_put(jax.device_get(dict(case.prompted.flat)), placement),
      train_state.template(infos, placement, trainer.optimizer),
      trainer.optimizer)
  for i, theirs in enumerate(case.arrays['trained/adafactor/prompts']):
    batch = {key: np.tile(x, (2, 1)) for key, x in case.batches[
        BATCHES[i % len(BATCHES)]].items()}
    state, _ = trainer.train(state, trainer.partitioner.global_batch(batch))
    ours = np.asarray(state.trainable[PROMPT])
    assert relative_error(ours, theirs) <= LIMITS['trained_prompts']


def test_figures(get_reference):
  rows = {variant: {
      quantity: max(_case(get_reference, variant).errors(quantity).values())
      for quantity in LIMITS} for variant in CONFIGS}
  lines = ['', 'largest error'.ljust(16) + ''.join(
      f'{variant:>10}' for variant in [*rows, 'limit'])]
  for quantity, limit in LIMITS.items():
    found = [row[quantity] for row in rows.values()]
    lines.append(quantity.ljust(16) + ''.join(
        f'{x:10.1e}' for x in [*found, limit]))
    assert max(found) <= limit
  sys.stdout.write('\n'.join([*lines, '']))
