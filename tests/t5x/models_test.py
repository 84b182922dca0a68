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
