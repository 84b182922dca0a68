"""However a model and its batch are cut over devices, they are one model.

Everything is compared with one device, in float32. Cutting changes only the
order in which sums are taken, so figures differ by some units in the last
place, 6e-8 of the largest summand, times what later operations make of that:

- loss, metrics and scores: 1e-5 of their value;
- a gradient: 2e-5 of its largest element, as its small elements are differences
  of larger ones;
- a parameter after three steps of Adafactor, each of which moves it by about
  0.03: 2e-5.

These are four to five times what was measured. Tokens are equal.
"""

import dataclasses
import functools

from flax import traverse_util
import jax
import numpy as np
import pytest
from t5x import adafactor
from t5x import decoding
from t5x import evaluation
from t5x import metrics as metrics_lib
from t5x import models
from t5x import optimizers
from t5x import partitioning
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib
import tensorflow as tf

PROMPT = 'encoder/prompt/prompt/prompt'
# Small, so that steps do not make much of differences; a power of two, so that
# the gradient can be had from them.
RATE = 2.0**-5


@dataclasses.dataclass(frozen=True)
class Cut:
  """A way to cut a model over eight devices.

  Attributes:
    partitions: devices that share a copy of the model; 0 is one device alone.
    dims: activation and parameter partitioning dimensions.
    scanned: whether layers are stacked.
    microbatches: parts of a batch.
  """

  partitions: int
  dims: tuple[int, int] = (1, 1)
  scanned: bool = False
  microbatches: int = 1

  @property
  def alone(self):
    """The same model on one device, in one piece."""
    return Cut(0, scanned=self.scanned)

  @property
  def sizes(self):
    """Every axis can be cut into eight."""
    layers = 2 if self.scanned else 1  # Of which compiling takes the time.
    return {'num_heads': 8, 'head_dim': 2, 'scan_layers': self.scanned,
            'num_encoder_layers': layers, 'num_decoder_layers': layers}

  def partitioner(self):
    """The mesh and its rules."""
    rules = partitioning.standard_logical_axis_rules(
        *self.dims, additional_rules=(('prompt', None), ('prompt_embed', None)))
    made = partitioning.PjitPartitioner(
        self.partitions or 1, logical_axis_rules=rules)
    if not self.partitions:
      made.mesh = partitioning.make_mesh(1, jax.devices()[:1])
    return made


# With each how the kernel [8, 16] of an MLP is cut, which shows that it is.
CUTS = {
    'data': (Cut(1), (1, 1)),
    'data 4 x model 2': (Cut(2), (1, 2)),
    'data 2 x model 4': (Cut(4), (1, 4)),
    'model': (Cut(8), (1, 8)),
    'weights over all, 8 x 1': (Cut(1, (1, 2)), (8, 1)),
    'weights over all, 2 x 4': (Cut(4, (1, 2)), (2, 4)),
    'activations twice': (Cut(4, (2, 1)), (1, 4)),
    'both twice': (Cut(2, (2, 2)), (4, 2)),
    'scanned': (Cut(2, scanned=True), (1, 2)),
    'scanned, weights over all': (Cut(4, (1, 2), scanned=True), (2, 4)),
    'parts': (Cut(4, microbatches=4), (1, 4)),
    'parts, scanned, both twice': (
        Cut(2, (2, 2), scanned=True, microbatches=2), (4, 2)),
}
# The others differ from these in how a model is trained only.
SPLITS = ['data', 'data 4 x model 2', 'data 2 x model 4', 'model', 'both twice',
          'scanned, weights over all']


def everything(tiny, cut):
  """The prompt moves by its gradient, all else by Adafactor."""
  def moved_by(definition, regex):
    return traverse_util.ModelParamTraversal(
        lambda path, _: (PROMPT in path) == (regex == PROMPT)), definition

  made = tiny.model(prompt_length=3, **cut.sizes)
  made.optimizer_def = optimizers.MultiOptimizer([
      moved_by(optimizers.sgd(RATE), PROMPT),
      moved_by(adafactor.Adafactor(
          min_dim_size_to_factor=4, logical_factor_rules=
          adafactor.standard_logical_factor_rules()), 'rest')])
  return made


def prompt_only(tiny, cut):
  """The prompt moves by its gradient, the rest is frozen."""
  return tiny.model(f'.*{PROMPT}', prompt_length=3,
                    definition=optimizers.sgd(RATE), **cut.sizes)


class Run:
  """A model on a mesh."""

  def __init__(self, tiny, cut, model):
    self._tiny = tiny
    self.partitioner = cut.partitioner()
    self.trainer = trainer_lib.Trainer(
        model, self.partitioner, first_step=0, base_key=jax.random.key(1),
        num_microbatches=cut.microbatches,
        learning_rate_fn=lambda step: np.float32(0.03))
    infos = train_state_lib.describe(
        lambda key: model.get_initial_variables(key, tiny.SHAPES),
        model.optimizer_def)
    placement = train_state_lib.shardings(infos, self.partitioner)
    template = train_state_lib.template(
        infos, placement, self.trainer.optimizer)
    self.state = train_state_lib.create(
        0, jax.device_put(tiny.values(infos), placement), template,
        self.trainer.optimizer)

  def steps(self, count):
    """Trains; returns metrics by step."""
    self.state, rows = self._tiny.steps(self.trainer, self.state, count)
    return [{name: value for name, value in row.items()
             if not name.startswith('timing')} for row in rows]

  def values(self):
    """Trainable parameters on the host."""
    return {path: np.asarray(x) for path, x in self.state.trainable.items()}

  def gradient_and_metrics(self):
    """Of the prompt in one step."""
    before = self.values()[PROMPT]
    (row,) = self.steps(1)
    return (before - self.values()[PROMPT]) / RATE, row

  def evaluate(self):
    """Metrics without dropout, of a batch of its own."""
    batch = self.partitioner.global_batch(self._tiny.batch(seed=9))
    return metrics_lib.compute({
        name: metric for name, metric in metrics_lib.to_host(
            self.trainer.eval(self.state, batch)).items()
        if not isinstance(metric, metrics_lib.TimeRate)})


@functools.cache
def trained(tiny, cut):
  """What three steps of everything give."""
  run = Run(tiny, cut, everything(tiny, cut))
  gradient, row = run.gradient_and_metrics()
  kernel = next(x for path, x in run.state.trainable.items()
                if path.startswith('encoder') and path.endswith('wi_0/kernel'))
  piece = kernel.addressable_shards[0].data.shape
  return {'gradient': gradient, 'rows': [row, *run.steps(2)],
          'values': run.values(), 'evaluated': run.evaluate(),
          'cuts': tuple(whole // part for whole, part in zip(
              kernel.shape, piece, strict=True) if whole in (8, 16))}


def assert_same_metrics(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def assert_same_gradient(found, expected):
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(
      found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize('name', CUTS)
def test_training_equals_one_device(tiny, name):
  cut, kernel_cuts = CUTS[name]
  expected, found = trained(tiny, cut.alone), trained(tiny, cut)
  assert expected['cuts'] == (1, 1) and found['cuts'] == kernel_cuts
  assert_same_gradient(found['gradient'], expected['gradient'])
  for row, same in zip(found['rows'], expected['rows'], strict=True):
    assert_same_metrics(row, same)
  assert_same_metrics(found['evaluated'], expected['evaluated'])
  for path, value in expected['values'].items():
    np.testing.assert_allclose(
        found['values'][path], value, rtol=0, atol=2e-5, err_msg=path)


@functools.cache
def prompt_gradient(tiny, cut):
  """Gradient and metrics of a step that moves the prompt only."""
  return Run(tiny, cut, prompt_only(tiny, cut)).gradient_and_metrics()


@pytest.mark.slow
@pytest.mark.parametrize('name', SPLITS)
def test_gradient_of_a_prompt_equals_one_device(tiny, name):
  cut, _ = CUTS[name]
  expected, same = prompt_gradient(tiny, cut.alone)
  gradient, row = prompt_gradient(tiny, cut)
  assert_same_gradient(gradient, expected)
  assert_same_metrics(row, same)


DECODERS = {
    'greedy': decoding.temperature_sample,
    'beams': functools.partial(decoding.beam_search, alpha=0.6),
}


@functools.cache
def decoded(tiny, cut, decoder):
  """Every row of two batches: all decodes and scores."""
  model = models.EncoderDecoderModel(
      tiny.module(prompt_length=3, **cut.sizes), tiny.Vocabulary(),
      tiny.Vocabulary(), tiny.optimizer(), decode_fn=DECODERS[decoder])
  run = Run(tiny, cut, model)
  if decoder == 'beams':
    model.predict_batch_with_aux = functools.partial(
        model.predict_batch_with_aux, num_decodes=4, return_all_decodes=True)
  # The second batch is padded from 3 rows to 8.
  rows = {key: np.concatenate([x, tiny.batch(seed=5)[key][:3]])
          for key, x in tiny.batch(seed=4).items()}
  dataset = tf.data.Dataset.from_tensor_slices(rows).enumerate()
  runner = evaluation.InferenceRunner(model, run.partitioner, 8)
  tokens, aux = runner.run_with_aux(run.state, dataset)
  scores = runner.run('score', run.state, dataset)
  return (np.stack([row for _, row in tokens]), np.array(aux['scores']),
          np.stack([row for _, row in scores]))


@pytest.mark.slow
@pytest.mark.parametrize('decoder', DECODERS)
@pytest.mark.parametrize('name', SPLITS)
def test_decoding_and_scores_equal_one_device(tiny, name, decoder):
  cut, _ = CUTS[name]
  expected, found = decoded(tiny, cut.alone, decoder), decoded(
      tiny, cut, decoder)
  np.testing.assert_array_equal(found[0], expected[0])
  assert len(np.unique(expected[0].reshape(-1, 4), axis=0)) > 3
  for ours, theirs in zip(found[1:], expected[1:], strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
