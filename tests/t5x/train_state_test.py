from flax import linen as nn
from flax.linen import partitioning as flax_partitioning
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x import metrics as metrics_lib
from t5x import model_info
from t5x import models
from t5x import optimizers
from t5x import partitioning
from t5x import train_state

PROMPT = r'.*/prompt/.*'
PROMPT_PATH = 'encoder/prompt/prompt/prompt'


def _described(tiny, partitions=1, regexes=(PROMPT,)):
  model = tiny.model(*regexes, prompt_length=3)
  partitioner = partitioning.PjitPartitioner(
      partitions, logical_axis_rules=partitioning.standard_logical_axis_rules(
          additional_rules=(('prompt', None), ('prompt_embed', None))))

  def init(key):
    return model.get_initial_variables(key, tiny.SHAPES)

  infos = train_state.describe(init, model.optimizer_def)
  return model, init, infos, train_state.shardings(infos, partitioner)


def test_describe_knows_shape_axes_and_fate(tiny):
  _, _, infos, _ = _described(tiny)
  prompt = infos.pop(PROMPT_PATH)
  assert (prompt.shape, prompt.axes, prompt.trainable) == (
      (3, 8), ('prompt', 'prompt_embed'), True)
  kernel = infos['encoder/layers_0/mlp/wi_0/kernel']
  assert (kernel.shape, kernel.axes) == ((8, 16), ('embed', 'mlp'))
  assert not any(info.trainable for info in infos.values())


class Published(nn.Module):
  """A network whose axes are in a collection, as T5X's own are."""

  @nn.compact
  def __call__(self, tokens):
    table = flax_partitioning.param_with_axes(
        'embedding', nn.initializers.normal(1.0), (32, 8), jnp.float32,
        axes=('vocab', 'embed'))
    prompt = flax_partitioning.param_with_axes(
        'prompt', nn.initializers.normal(1.0), (8,), jnp.float32,
        axes=('embed',))
    x = jnp.take(table, tokens, axis=0)
    x = flax_partitioning.with_sharding_constraint(
        x + prompt[None, None], ('batch', 'length', 'embed'))
    return x @ table.T


class PublishedModel(models.BaseModel):
  """Predicts every token from itself."""

  def __init__(self, optimizer_def):
    self.optimizer_def = optimizer_def

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    return Published().init(
        rng, jnp.ones(input_shapes['decoder_target_tokens'], jnp.int32))

  def loss_fn(self, params, batch, dropout_rng):
    tokens = batch['decoder_target_tokens']
    logits = Published().apply({'params': params}, tokens)
    loss = -jnp.sum(jnp.take_along_axis(
        jax.nn.log_softmax(logits), tokens[..., None], axis=-1))
    return loss, {'loss': metrics_lib.AveragePerStep(total=loss)}

  def predict_batch_with_aux(self, params, batch, rng=None):
    raise NotImplementedError

  def score_batch(self, params, batch):
    raise NotImplementedError


def test_a_network_with_a_collection_of_axes_trains(tiny):
  model = PublishedModel(tiny.optimizer(
      '.*prompt', definition=optimizers.sgd(0.01)))
  infos = train_state.describe(
      lambda key: model.get_initial_variables(key, tiny.SHAPES),
      model.optimizer_def)
  assert {path: info.axes for path, info in infos.items()} == {
      'embedding': ('vocab', 'embed'), 'prompt': ('embed',)}
  trainer, state = tiny.start(model, partitions=2)
  assert list(state.trainable) == ['prompt']
  table = np.asarray(state.frozen['embedding'])
  shard = state.frozen['embedding'].addressable_shards[0]
  assert shard.data.shape == (16, 8)
  losses = []
  for _ in range(3):
    state, (row,) = tiny.steps(trainer, state, 1)
    losses.append(row['loss'])
  assert losses[0] > losses[1] > losses[2]
  np.testing.assert_array_equal(state.frozen['embedding'], table)


def test_axes_are_counted(tiny):
  class Wrong(nn.Module):
    @nn.compact
    def __call__(self, x):
      return x * flax_partitioning.param_with_axes(
          'scale', nn.initializers.ones, (2,), jnp.float32,
          axes=('embed', 'mlp'))

  with pytest.raises(ValueError, match=r"scale of 1 axes .*'embed', 'mlp'"):
    train_state.describe(
        lambda key: Wrong().init(key, jnp.ones(2)), tiny.optimizer())


def test_a_parameter_without_axes_is_refused(tiny):
  def init(key):
    return nn.Dense(2).init(key, jnp.ones((1, 2)))

  with pytest.raises(ValueError, match='of . axes names no logical'):
    train_state.describe(init, tiny.optimizer())


def test_paths_and_nested_dictionaries_are_inverse():
  paths = {'a/b/c': 1, 'a/d': 2, 'e': 3}
  assert train_state.flat(train_state.nested(paths)) == paths
  assert train_state.nested(paths) == {'a': {'b': {'c': 1}, 'd': 2}, 'e': 3}


def test_only_wanted_parameters_are_initialised(tiny):
  _, init, _, placement = _described(tiny)
  values = train_state.initialize(
      init, jax.random.key(0), [PROMPT_PATH], placement)
  assert list(values) == [PROMPT_PATH]
  whole = train_state.initialize(
      init, jax.random.key(0), list(placement), placement)
  np.testing.assert_array_equal(values[PROMPT_PATH], whole[PROMPT_PATH])
  assert train_state.initialize(init, jax.random.key(0), [], placement) == {}


def test_accumulators_live_where_their_parameters_do(tiny):
  model, _, infos, placement = _described(tiny, partitions=2, regexes=())
  optimizer = model.optimizer_def.transformation(lambda step: 0.1, 0)
  template = train_state.template(infos, placement, optimizer)
  sharded = 0
  for path, leaf in jax.tree_util.tree_flatten_with_path(
      template.opt_state)[0]:
    name = next((k.key for k in path if hasattr(k, 'key')
                 and k.key in infos), None)
    if name and leaf.shape == infos[name].shape:
      assert leaf.sharding == placement[name]
      sharded += 1
  assert sharded == len(infos)


def test_an_axis_that_cannot_be_cut_is_refused(tiny):
  with pytest.raises(ValueError, match='cannot be cut into 8 equal parts'):
    _described(tiny, partitions=8)


def test_model_info_lists_every_variable_in_the_published_columns(tiny):
  model, _, infos, placement = _described(tiny)
  optimizer = model.optimizer_def.transformation(lambda step: 0.1, 0)
  text = model_info.model_info(
      infos, placement, train_state.template(infos, placement, optimizer))
  lines = text.splitlines()
  name = 'encoder/layers_0/mlp/wi_0/kernel'
  (kernel,) = [line for line in lines if name in line]
  assert kernel == (
      f'Variable {name:<80} size {128:<12} shape {"(embed=8, mlp=16)":<40} '
      "partition spec (None, 'model')")
  total = sum(int(np.prod(info.shape)) for info in infos.values())
  assert f'Total number of parameters: {total}' in lines
  assert 'Trainable parameters: 24' in lines
  states = [line for line in lines if line.startswith('Variable param_states/')]
  assert any(PROMPT_PATH in line for line in states)
  assert not any('layers_0' in line for line in states)
