"""The decoder-only network and model against plain recomputation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import seqio
from t5x import datasets
from t5x import decoding
from t5x import models
from t5x import train_state
from t5x.examples.decoder_only import network
from t5x.examples.t5 import network as t5
import tensorflow as tf

EOS, V = 1, 32
SIZES = {'vocab_size': V, 'emb_dim': 8, 'num_heads': 2, 'head_dim': 4,
         'mlp_dim': 16, 'mlp_activations': ('gelu', 'linear'),
         'dropout_rate': 0.0}

# Rows of inputs and targets, as SeqIO's converter puts them together. The last
# but one has no inputs, the last one nothing but inputs.
ROWS = [([4, 5, 6], [7, 8, 1]), ([9], [3, 1]), ([2, 3, 4, 5, 6], [1]),
        ([], [6, 5, 4, 1]), ([7, 8, 9, 2, 3, 4, 5], [])]
LENGTH = 8


def batch_of(rows=tuple(ROWS), length=LENGTH):
  """The features of a batch."""
  targets = [x + y + [0] * (length - len(x + y)) for x, y in rows]
  weights = [[0] * len(x) + [1] * len(y) + [0] * (length - len(x + y))
             for x, y in rows]
  attention = [[1] * (len(x) + 1) + [0] * (length - len(x) - 1)
               for x, _ in rows]
  targets = np.array(targets, np.int32)
  return {
      'decoder_target_tokens': targets,
      'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      'decoder_loss_weights': np.array(weights, np.int32),
      'decoder_causal_attention': np.array(attention, np.int32)}


def module(**changes):
  return network.DecoderWrapper(network.TransformerConfig(
      **SIZES | {'num_layers': 2} | changes))


def model(bidirectional=False, optimizer_def=None, **changes):
  class Vocabulary:
    eos_id = EOS

  return models.DecoderOnlyModel(
      module(**changes), Vocabulary(), optimizer_def,
      inputs_bidirectional_attention=bidirectional)


def shapes_of(net):
  ids = jnp.ones((1, 2), jnp.int32)
  variables = jax.eval_shape(
      lambda key: net.init(key, ids, ids, enable_dropout=False),
      jax.random.key(0))
  return train_state.flat(variables['params'])


def params_of(net, seed=0):
  rng = np.random.default_rng(seed)
  return train_state.nested({
      path: jnp.float32(rng.normal(size=box.value.shape)
                        / np.sqrt(box.value.shape[0]) + path.endswith('scale'))
      for path, box in sorted(shapes_of(net).items())})


def logits_of(subject, params, batch):
  return np.asarray(jax.jit(subject._compute_logits)(params, batch))


every_kind = pytest.mark.parametrize('options', [
    {}, {'bidirectional': True}, {'bidirectional': True, 'scan_layers': True},
    {'logits_via_embedding': True}],
    ids=['causal', 'prefix', 'scanned', 'tied'])


def test_parameters_are_t5xs():
  found = {path: (box.value.shape, box.names)
           for path, box in shapes_of(module(num_layers=1)).items()}
  square = ((8, 8), ('embed', 'joined_kv'))
  layer, norm = 'decoder/layers_0/', ((8,), ('embed',))
  assert found == {
      'decoder/token_embedder/embedding': ((32, 8), ('vocab', 'embed')),
      'decoder/relpos_bias/rel_embedding': (
          (2, 32), ('heads', 'relpos_buckets')),
      layer + 'pre_self_attention_layer_norm/scale': norm,
      layer + 'self_attention/query/kernel': square,
      layer + 'self_attention/key/kernel': square,
      layer + 'self_attention/value/kernel': square,
      layer + 'self_attention/out/kernel': ((8, 8), ('joined_kv', 'embed')),
      layer + 'pre_mlp_layer_norm/scale': norm,
      layer + 'mlp/wi_0/kernel': ((8, 16), ('embed', 'mlp')),
      layer + 'mlp/wi_1/kernel': ((8, 16), ('embed', 'mlp')),
      layer + 'mlp/wo/kernel': ((16, 8), ('mlp', 'embed')),
      'decoder/decoder_norm/scale': norm,
      'decoder/logits_dense/kernel': ((8, 32), ('embed', 'vocab'))}


# T5X states these counts for one table of relative positions per layer, and
# for size base with an output table of its own; now there is one per model.
@pytest.mark.parametrize('sizes,tied,published', [
    ((768, 12, 12, 2048), False, 134307072),
    ((4096, 64, 24, 10240), True, 4762357760)])
def test_sizes_have_the_published_number_of_parameters(sizes, tied, published):
  width, heads, layers, hidden = sizes
  found = shapes_of(module(
      vocab_size=32128, emb_dim=width, num_heads=heads, num_layers=layers,
      head_dim=64, mlp_dim=hidden, logits_via_embedding=tied))
  count = sum(math.prod(box.value.shape) for box in found.values())
  assert count == published - (layers - 1) * heads * 32


# An encoder-decoder, which is compared with other implementations elsewhere,
# whose cross-attention adds nothing.
def test_it_is_the_decoder_of_an_encoder_decoder():
  single, batch = model(), batch_of()
  params = params_of(single.module)
  both = t5.Transformer(t5.T5Config(
      **SIZES, num_encoder_layers=1, num_decoder_layers=2))
  ids = jnp.ones((1, 2), jnp.int32)
  boxes = train_state.flat(jax.eval_shape(
      lambda key: both.init(key, ids, ids, ids, enable_dropout=False),
      jax.random.key(0))['params'])
  flat = {path: jnp.zeros(box.value.shape) for path, box in boxes.items()}
  for path, value in train_state.flat(params).items():
    shared = path.replace('decoder/token_embedder', 'token_embedder')
    assert flat[shared].shape == value.shape
    flat[shared] = value
  np.testing.assert_allclose(
      logits_of(single, params, batch),
      jax.jit(functools.partial(both.apply, enable_dropout=False))(
          {'params': train_state.nested(flat)}, np.ones((5, 2), np.int32),
          batch['decoder_input_tokens'], batch['decoder_target_tokens']),
      rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('prefix', [0, 3])
def test_what_a_place_depends_on(prefix):
  # The gradient with respect to a place that is not seen is exactly zero.
  net = module()
  params = params_of(net)
  tokens = np.random.default_rng(1).integers(2, V, (1, 6))
  x = params['decoder']['token_embedder']['embedding'][tokens]
  inside = jnp.int32(np.arange(6)[None] < prefix)

  def outputs(x):
    def run(net, x):
      sequence = net.decoder.embed(
          jnp.int32(tokens), jnp.ones((1, 6), jnp.int32),
          prefix=inside if prefix else None)
      return net.decoder(None, sequence.replace(x=x), deterministic=True)

    return jnp.sum(net.apply({'params': params}, x, method=run)[0], axis=-1)

  gradients = jax.jit(jax.jacrev(outputs))(x)[:, 0]
  seen = np.tri(6, dtype=bool)
  seen[:prefix, :prefix] = True
  np.testing.assert_array_equal(np.any(gradients != 0, axis=-1), seen)


@pytest.mark.parametrize('bidirectional', [False, True])
def test_packed_equals_unpacked(bidirectional):
  subject = model(bidirectional)
  params = params_of(subject.module)
  rows = ROWS[:2]
  apart = logits_of(subject, params, batch_of(rows))
  lengths = [len(x + y) for x, y in rows]
  packed = {
      name: np.concatenate([
          x[i, :n] for i, n in enumerate(lengths)])[None]
      for name, x in batch_of(rows).items()}
  packed['decoder_segment_ids'] = np.repeat([1, 2], lengths)[None]
  packed['decoder_positions'] = np.concatenate(
      [np.arange(n, dtype=np.int32) for n in lengths])[None]
  together = logits_of(subject, params, packed)
  expected = np.concatenate([apart[i, :n] for i, n in enumerate(lengths)])
  np.testing.assert_allclose(together[0], expected, rtol=1e-5, atol=1e-5)


@every_kind
def test_cached_decoding_from_prefixes_equals_recomputing(options):
  # Every row is fed its own targets from the end of its own inputs.
  subject, batch = model(**options), batch_of()
  params = params_of(subject.module)
  expected = logits_of(subject, params, batch | {
      'decoder_target_tokens': np.ones((5, LENGTH), np.int32)})
  inside = batch['decoder_causal_attention']
  inputs = batch['decoder_input_tokens']
  cache = jax.jit(subject._compute_kv_cache, static_argnums=3)(
      params, inputs * inside, inside, LENGTH)
  step = jax.jit(subject._compute_logits_from_slice, static_argnums=2)
  place = np.sum(inside, axis=1) - 1
  assert len(set(place)) == 5
  for _ in range(LENGTH):
    here = np.minimum(place, LENGTH - 1)
    logits, cache = step(decoding.DecodingState(
        cur_index=jnp.int32(here), sequences=jnp.int32(inputs),
        cur_token=jnp.int32(np.take_along_axis(inputs, here[:, None], 1)),
        cache=cache), params, LENGTH)
    running = place < LENGTH
    np.testing.assert_allclose(
        logits[running], expected[np.arange(5), here][running],
        rtol=1e-5, atol=1e-5)
    place = place + 1


def greedy_by_hand(subject, params, batch):
  """Argmax after argmax, everything computed anew for each token."""
  inside = batch['decoder_causal_attention']
  given = np.pad(batch['decoder_input_tokens'] * inside, ((0, 0), (0, 1)))
  answers = np.zeros((5, LENGTH), np.int32)
  start, rows = np.sum(inside, axis=1) - 1, np.arange(5)
  compute = jax.jit(subject._compute_logits)
  for i in range(LENGTH):
    place = np.minimum(start + i, LENGTH - 1)
    logits = compute(params, {
        'decoder_input_tokens': given[:, :-1],
        'decoder_target_tokens': np.ones((5, LENGTH), np.int32),
        'decoder_causal_attention': inside})
    ended = (start + i >= LENGTH) | np.any(answers == EOS, axis=1)
    best = np.asarray(logits)[rows, place].argmax(-1)
    answers[:, i] = np.where(ended, 0, best)
    given[rows, place + 1] = np.where(ended, given[rows, place + 1], best)
  return answers


@every_kind
def test_greedy_prediction_equals_computing_everything_anew(options):
  subject, batch = model(**options), batch_of()
  params = params_of(subject.module, seed=2)
  answers = jax.jit(subject.predict_batch)(params, batch)
  np.testing.assert_array_equal(
      answers, greedy_by_hand(subject, params, batch))
  # What the targets are plays no role.
  others = batch | {
      'decoder_target_tokens': np.zeros((5, LENGTH), np.int32),
      'decoder_input_tokens': batch['decoder_input_tokens'] * batch[
          'decoder_causal_attention']}
  np.testing.assert_array_equal(
      jax.jit(subject.predict_batch)(params, others), answers)


@pytest.mark.parametrize('scan', [False, True])
def test_scores_of_decodes_are_their_log_likelihoods(scan):
  subject = model(bidirectional=True, scan_layers=scan)
  params, rows = params_of(subject.module), ROWS[:3]
  every, aux = jax.jit(functools.partial(
      subject.predict_batch_with_aux, num_decodes=4, return_all_decodes=True,
      decoder_params={'topk': 0, 'rescale_log_probs': False}))(
          params, batch_of(rows))
  assert every.shape == (3, 4, LENGTH) and aux['scores'].shape == (3, 4)
  assert np.all(np.diff(aux['scores'], axis=1) >= 0)
  assert len(np.unique(every[0], axis=0)) > 1
  again, expected = [], []
  for row, copy in np.ndindex(3, 4):
    x, answer = rows[row][0], every[row, copy].tolist()
    end = answer.index(EOS) + 1 if EOS in answer else LENGTH - len(x)
    if 0 not in answer[:end]:  # As a target it would be padding.
      again.append((x, answer[:end]))
      expected.append(aux['scores'][row, copy])
  assert len(again) > 6
  np.testing.assert_allclose(
      jax.jit(subject.score_batch)(params, batch_of(again)), expected,
      rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('scan', [False, True])
def test_beams_find_what_enumeration_finds(scan):
  # Three tokens and two free places: the end, or another token and the end.
  subject = model(True, vocab_size=3, scan_layers=scan)
  subject.decode_fn = decoding.beam_search
  params = params_of(subject.module, seed=3)
  rows = [([2, 2, 1, 2, 2, 1], []), ([2, 1, 2, 1, 1, 2], [])]
  batch = batch_of(rows)
  every, aux = jax.jit(functools.partial(
      subject.predict_batch_with_aux, num_decodes=6, return_all_decodes=True,
      decoder_params={'alpha': 0.0}))(params, batch)
  for row, (x, _) in enumerate(rows):
    log_probs = {
        token: scipy.special.log_softmax(logits_of(subject, params, {
            'decoder_input_tokens': np.array([[0, *x, token]], np.int32),
            'decoder_target_tokens': np.ones((1, LENGTH), np.int32),
            'decoder_causal_attention': batch['decoder_causal_attention'][
                row:row + 1]})[0], axis=-1) for token in (0, 2)}
    ends = sorted([
        (log_probs[0][6, EOS], [EOS, 0]),
        *((found[6, token] + found[7, EOS], [token, EOS])
          for token, found in log_probs.items())])
    assert np.sum(aux['scores'][row] > -1e6) == 3
    for place, (score, answer) in enumerate(ends, start=3):
      np.testing.assert_array_equal(every[row, place, :2], answer)
      np.testing.assert_allclose(aux['scores'][row, place], score, rtol=1e-4)


def test_loss_and_score_are_of_the_targets_alone():
  subject, batch = model(), batch_of()
  params = params_of(subject.module)
  log_probs = scipy.special.log_softmax(
      np.float64(logits_of(subject, params, batch)), axis=-1)
  expected = np.sum(np.take_along_axis(
      log_probs, batch['decoder_target_tokens'][..., None], -1)[..., 0]
      * batch['decoder_loss_weights'], axis=1)
  np.testing.assert_allclose(
      subject.score_batch(params, batch), expected, rtol=1e-5, atol=1e-6)
  loss, metrics = subject.eval_fn(params, batch)
  np.testing.assert_allclose(loss, -expected.sum(), rtol=1e-5)
  assert metrics['non_padding_fraction/loss_weights'].compute() == (
      pytest.approx(batch['decoder_loss_weights'].mean()))


def test_batches_come_from_seqios_converter():
  converter = datasets.feature_converter(
      model().FEATURE_CONVERTER_CLS)
  assert datasets.feature_converter(
      seqio.DecoderFeatureConverter).MODEL_FEATURES == converter.MODEL_FEATURES
  for (x, y), row in zip(ROWS[:3], range(3), strict=True):
    rows = tf.data.Dataset.from_tensors({'inputs': x, 'targets': y})
    (found,) = converter(
        rows, {'inputs': 5, 'targets': 3}).as_numpy_iterator()
    ours = batch_of()
    for name in ('decoder_target_tokens', 'decoder_loss_weights',
                 'decoder_causal_attention'):
      np.testing.assert_array_equal(found[name], ours[name][row])
    inside = ours['decoder_causal_attention'][row]
    np.testing.assert_array_equal(
        found['decoder_input_tokens'] * inside,
        ours['decoder_input_tokens'][row] * inside)


@pytest.mark.parametrize('call', ['predict_batch', 'score_batch'])
def test_a_batch_that_does_not_tell_inputs_from_targets_is_refused(call):
  batch = batch_of()
  del batch['decoder_causal_attention']
  subject = model(bidirectional=True)
  with pytest.raises(ValueError, match="'inputs' and 'targets'"):
    getattr(subject, call)(params_of(subject.module), batch)


def test_initial_variables_name_every_axis(tiny):
  subject = model(optimizer_def=tiny.optimizer())
  infos = train_state.describe(
      lambda key: subject.get_initial_variables(
          key, {name: x.shape for name, x in batch_of().items()}),
      subject.optimizer_def)
  assert infos.keys() == shapes_of(subject.module).keys()


def test_remove_prefix_moves_what_follows_to_the_left():
  rows = np.array([[5, 6, 7, 8], [1, 2, 3, 4], [9, 9, 9, 9]], np.int32)
  lengths = np.array([1, 0, 4])
  expected = [[6, 7, 8, 0], [1, 2, 3, 4], [0, 0, 0, 0]]
  np.testing.assert_array_equal(models.remove_prefix(rows, lengths), expected)
  many = np.repeat(rows[:, None], 2, axis=1)
  np.testing.assert_array_equal(
      models.remove_prefix(many, lengths)[:, 1], expected)
