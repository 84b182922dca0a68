from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x import decoding
from t5x import models
from t5x import train_state

EOS = 1


def _log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.fixture(scope='module', params=[0, 3], ids=['plain', 'prompt'])
def subject(tiny, request):
  """A model, its nested parameters, a batch and the logits of its targets."""
  model = tiny.model(prompt_length=request.param)
  params = tiny.params(model.module)
  batch = tiny.batch()
  with jax.numpy_dtype_promotion('strict'):
    logits = model.module.apply(
        {'params': params}, batch['encoder_input_tokens'],
        batch['decoder_input_tokens'], batch['decoder_target_tokens'],
        enable_dropout=False)
  return model, params, batch, logits


def test_loss_is_the_summed_cross_entropy_of_real_tokens(subject):
  model, params, batch, logits = subject
  loss, metrics = model.loss_fn(params, batch, None)
  targets = batch['decoder_target_tokens']
  nats = -np.take_along_axis(
      _log_softmax(logits), targets[..., None], axis=-1)[..., 0]
  real = targets > 0
  np.testing.assert_allclose(loss, nats[real].sum(), rtol=1e-5)
  right = np.asarray(logits).argmax(-1) == targets
  assert metrics['accuracy'].compute() == pytest.approx(right[real].mean())
  assert metrics['loss_per_nonpadding_target_token'].compute() == (
      pytest.approx(nats[real].mean(), rel=1e-5))
  assert metrics['non_padding_fraction/decoder_target_tokens'].compute() == (
      pytest.approx(real.mean()))


def test_score_is_the_log_likelihood_of_the_targets(subject):
  model, params, batch, logits = subject
  targets = batch['decoder_target_tokens']
  log_probs = np.take_along_axis(
      _log_softmax(logits), targets[..., None], axis=-1)[..., 0]
  expected = np.where(targets > 0, log_probs, 0.0).sum(-1)
  np.testing.assert_allclose(
      model.score_batch(params, batch), expected, rtol=1e-5)


def _greedy(model, params, batch):
  """Argmax after argmax, everything computed anew for each token."""
  rows, length = batch['decoder_input_tokens'].shape
  tokens = np.zeros((rows, length), np.int32)
  ended = np.zeros(rows, bool)
  for place in range(length):
    shifted = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    logits = model.module.apply(
        {'params': params}, batch['encoder_input_tokens'], shifted,
        jnp.ones_like(tokens), enable_dropout=False)
    best = np.asarray(logits)[:, place].argmax(-1)
    tokens[:, place] = np.where(ended, 0, best)
    ended |= best == EOS
  return tokens


def test_greedy_prediction_equals_computing_everything_anew(subject):
  model, params, batch, _ = subject
  np.testing.assert_array_equal(
      model.predict_batch(params, batch), _greedy(model, params, batch))


def test_scanned_layers_predict_the_same(tiny):
  model = tiny.model(prompt_length=3, scan_layers=True)
  params, batch = tiny.params(model.module), tiny.batch()
  np.testing.assert_array_equal(
      model.predict_batch(params, batch), _greedy(model, params, batch))


def test_scores_of_predictions_are_their_log_likelihoods(subject):
  model, params, batch, _ = subject
  tokens, aux = model.predict_batch_with_aux(
      params, batch, decoder_params={'rescale_log_probs': False})
  ends = np.cumsum(np.asarray(tokens) == EOS, axis=-1)
  # An answer that was cut off has no end token to score.
  again = batch | {
      'decoder_target_tokens': np.asarray(tokens),
      'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
      'decoder_loss_weights': np.pad(
          ends == 0, ((0, 0), (1, 0)), constant_values=True)[:, :-1].astype(
              np.float32)}
  np.testing.assert_allclose(
      aux['scores'], model.score_batch(params, again), rtol=1e-4)


def test_all_decodes_are_ordered_and_the_last_is_the_best(tiny):
  model = tiny.model()
  model.decode_fn = decoding.beam_search
  params, batch = tiny.params(model.module), tiny.batch()
  every, aux = model.predict_batch_with_aux(
      params, batch, num_decodes=3, return_all_decodes=True)
  best, best_aux = model.predict_batch_with_aux(params, batch, num_decodes=3)
  assert every.shape == (8, 3, 4) and aux['scores'].shape == (8, 3)
  assert (np.diff(aux['scores'], axis=-1) >= 0).all()
  np.testing.assert_array_equal(every[:, -1], best)
  np.testing.assert_array_equal(aux['scores'][:, -1], best_aux['scores'])


def test_samples_depend_on_the_key_alone(tiny):
  model = tiny.model()
  params, batch = tiny.params(model.module), tiny.batch()

  def sample(seed):
    return np.asarray(model.predict_batch_with_aux(
        params, batch, rng=jax.random.key(seed),
        decoder_params={'topk': 0, 'temperature': 2.0})[0])

  np.testing.assert_array_equal(sample(0), sample(0))
  assert (sample(0) != sample(1)).any()


def test_a_key_given_twice_is_refused(tiny):
  key = jax.random.key(0)
  with pytest.raises(ValueError, match='not both'):
    tiny.model().predict_batch_with_aux(
        {}, tiny.batch(), rng=key, decoder_params={'decode_rng': key})


def test_initial_variables_name_every_axis(tiny):
  model = tiny.model(prompt_length=3)
  infos = train_state.describe(
      lambda key: model.get_initial_variables(key, tiny.SHAPES),
      model.optimizer_def)
  assert infos['encoder/prompt/prompt/prompt'].axes == (
      'prompt', 'prompt_embed')
  assert all(len(info.axes) == len(info.shape) for info in infos.values())


def test_vocabularies_for_gin(tiny):
  model = tiny.model()
  assert models.get_input_vocabulary(model) is model.input_vocabulary
  assert models.get_output_vocabulary(model) is model.output_vocabulary


def test_a_subclass_can_add_metrics(tiny):
  class Model(models.EncoderDecoderModel):
    def _compute_metrics(self, logits, targets, mask, loss, z_loss=None,
                         segment_ids=None):
      metrics = super()._compute_metrics(logits, targets, mask, loss, z_loss)
      return {'mine': metrics['accuracy']}

  plain = tiny.model()
  model = Model(plain.module, None, None, plain.optimizer_def)
  _, metrics = model.loss_fn(
      tiny.params(model.module), tiny.batch(), None)
  assert 'mine' in metrics and 'loss' not in metrics


def test_a_model_says_how_it_decodes_by_default(tiny):
  model = models.EncoderDecoderModel(
      tiny.module(), None, tiny.Vocabulary(), None, decoding.beam_search,
      default_decoder_params=models.DecoderParams(
          return_all_decodes=True, num_decodes=3))
  params, batch = tiny.params(model.module), tiny.batch()
  assert model.predict_batch(params, batch).shape == (8, 3, 4)
  assert model.predict_batch_with_aux(
      params, batch, return_all_decodes=False, num_decodes=2)[0].shape == (8, 4)


def test_targets_can_be_the_prompt(tiny):
  model = tiny.model(prompt_length=3)
  params, batch = tiny.params(model.module), tiny.batch()
  inputs = np.array(batch['decoder_input_tokens'])
  inputs[:, 2:], inputs[0, 1] = 0, EOS
  batch['decoder_input_tokens'] = inputs
  tokens = np.asarray(model.predict_batch_with_aux(
      params, batch, prompt_with_targets=True)[0])
  expected = np.where(inputs == EOS, 0, inputs)[1:, 1]
  assert np.all(expected > EOS)
  np.testing.assert_array_equal(tokens[1:, 0], expected)
  # An end token is no prompt: this row is decoded as it is without one.
  free = np.asarray(model.predict_batch(params, batch))
  np.testing.assert_array_equal(tokens[0], free[0])
  assert np.any(free[1:, 0] != expected)


def test_feature_converters_are_given_by_class_or_by_name(tiny):
  class Converter:
    pass

  assert tiny.model().FEATURE_CONVERTER_CLS == 'EncDecFeatureConverter'
  chosen = models.EncoderDecoderModel(
      tiny.module(), None, None, None, feature_converter_cls=Converter)
  assert chosen.FEATURE_CONVERTER_CLS is Converter
  assert models.DecoderOnlyModel(
      tiny.module(), None, None,
      feature_converter_cls=Converter).FEATURE_CONVERTER_CLS is Converter


class Sowing(nn.Module):
  """A network that notes what it does."""

  transformer: nn.Module

  @nn.compact
  def __call__(self, *args, **kwargs):
    logits = self.transformer(*args, **kwargs)
    self.sow('intermediates', 'largest', jnp.max(logits))
    return logits


def test_scores_come_with_what_the_network_sowed(subject):
  model, params, batch, logits = subject
  scores, inside = model.score_batch(params, batch, return_intermediates=True)
  np.testing.assert_allclose(scores, model.score_batch(params, batch))
  assert inside.keys() == {'decoder'}
  sown = inside['decoder']
  np.testing.assert_array_equal(
      sown['target_tokens'][0], batch['decoder_target_tokens'])
  np.testing.assert_array_equal(
      sown['loss_weights'][0], batch['decoder_loss_weights'])
  np.testing.assert_allclose(
      np.sum(sown['token_scores'][0], axis=1), scores, rtol=1e-6)
  sowing = models.EncoderDecoderModel(Sowing(model.module), None, None, None)
  _, inside = sowing.score_batch(
      {'transformer': params}, batch, return_intermediates=True)
  np.testing.assert_allclose(inside['largest'][0], np.max(logits), rtol=1e-6)


def test_unknown_loss_options_are_refused(tiny):
  with pytest.raises(TypeError, match='label_smothing'):
    models.EncoderDecoderModel(
        tiny.module(), None, None, None, label_smothing=0.1)


@pytest.mark.parametrize('packed', [False, True])
def test_loss_says_what_a_batch_is_made_of(tiny, packed):
  model = tiny.model()
  params, batch = tiny.params(model.module), tiny.batch()
  names = ('encoder_input_tokens', 'decoder_target_tokens')
  examples = {name: 8.0 for name in names}
  if packed:  # Two examples in each row: the first token, and the rest.
    for side, feature in zip(('encoder', 'decoder'), names, strict=True):
      ids = np.where(batch[feature] > 0, 2, 0)
      ids[:, 0] = 1
      batch[f'{side}_segment_ids'] = ids
    examples = {'encoder': 16.0, 'decoder': 16.0}
  _, metrics = model.loss_fn(params, batch, None)
  found = {name: metric.compute() for name, metric in metrics.items()
           if name.startswith(('effective', 'non_padding'))}
  real = [np.sum(batch[name] > 0) for name in names]
  sizes = [batch[name].size for name in names]
  assert found == pytest.approx({
      **{f'effective_batch_size/{name}': n for name, n in examples.items()},
      **{f'non_padding_fraction/{name}': n / size
         for name, n, size in zip(examples, real, sizes, strict=True)},
      'non_padding_fraction/loss_weights': real[1] / sizes[1],
      'non_padding_fraction/overall': sum(real) / sum(sizes)})


@pytest.mark.parametrize('row,count', [
    ([1, 1, 3, 3, 0, 0], 2), ([0, 0, 0], 0), ([1, 1, 1], 1), ([0, 2, 2, 3], 2)])
def test_packed_examples_are_counted(row, count):
  assert models.count_packed_examples(jnp.array([row])) == count
  assert models.count_packed_examples(jnp.array([row, row])) == 2 * count
