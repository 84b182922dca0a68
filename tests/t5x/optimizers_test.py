import functools
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from prompt_tuning.train import utils as prompt_utils
import pytest
from t5x import adafactor
from t5x import optimizers

PROMPT = 'encoder/prompt/prompt/prompt'
TASK = 'decoder/prompt/prompt/prompt'
SCALE = 'encoder/encoder_norm/scale'
KERNEL = 'encoder/layers_0/attention/query/kernel'
EMBEDDING = 'token_embedder/embedding'
SIZES = {PROMPT: (10, 8), TASK: (6, 8), SCALE: (8,), KERNEL: (8, 16),
         EMBEDDING: (16, 8)}
RATE, FIRST_STEP = 0.5, 1_100_000


def only(*regexes):
  """The published spelling of what a `MultiOptimizer` trains."""
  return traverse_util.ModelParamTraversal(prompt_utils.match_any(regexes))


def where(keep):
  """Any function of a path will do."""
  return traverse_util.ModelParamTraversal(lambda path, _: keep(path))


def multi(*pairs):
  return optimizers.MultiOptimizer(pairs)


FACTORED = adafactor.Adafactor(
    min_dim_size_to_factor=8, multiply_by_parameter_scale=False)

OPTAX = ('adabelief', 'adagrad', 'adam', 'adamw', 'lamb', 'lars',
         'lion', 'radam', 'rmsprop', 'sgd', 'yogi')

# Each definition with the parameters that it must train.
DEFINITIONS = {
    'adafactor': (adafactor.Adafactor(), SIZES),
    'adafactor with all it can do': (adafactor.Adafactor(
        beta1=0.9, weight_decay_rate=1e-5, min_dim_size_to_factor=8,
        global_norm_clip_threshold=1.0, skip_nan_updates=True), SIZES),
    **{name: (getattr(optimizers, name)(learning_rate=0.1), SIZES)
       for name in OPTAX},
    'sgd with momentum': (
        optimizers.sgd(learning_rate=0.1, momentum=0.9), SIZES),
    'chain': (
        optimizers.chain([optax.clip(1.0), optax.adamw(0.1)]), SIZES),
    'prompt': (multi((only('.*/prompt/.*'), FACTORED)), {PROMPT, TASK}),
    'prompt of the encoder': (
        multi((only('/encoder/.*/prompt'), optimizers.adamw(0.1))), {PROMPT}),
    'two regexes': (
        multi((only('.*/prompt/.*', '.*/scale'), FACTORED)),
        {PROMPT, TASK, SCALE}),
    'function': (
        multi((where(lambda path: path.endswith('kernel')), FACTORED)),
        {KERNEL}),
    'two optimisers': (
        multi((only('/encoder/prompt/.*'), FACTORED),
              (where(lambda path: 'embed' in path), optimizers.adam(0.1))),
        {PROMPT, EMBEDDING}),
    'nested': (
        multi((where(lambda path: True),
               multi((only('/encoder/prompt/.*'), FACTORED),
                     (where(lambda path: 'encoder/prompt' not in path),
                      optimizers.adam(0.1))))), SIZES),
}

LAWS = pytest.mark.parametrize(
    'definition,trained', DEFINITIONS.values(), ids=DEFINITIONS.keys())


def parameters():
  rng = np.random.default_rng(0)
  return {path: jnp.float32(rng.normal(size=size))
          for path, size in SIZES.items()}


@functools.cache
def train(definition, steps=3):
  """Trains what the labels say: all parameters after each step, the state."""
  frozen = parameters()
  trainable = {path: frozen.pop(path) for path in definition.labels(frozen)}
  optimizer = definition.transformation(lambda step: RATE, FIRST_STEP)

  def step(carry, _):
    trainable, state = carry
    gradients = jax.grad(
        lambda p: sum(jnp.sum(jnp.cosh(x)) for x in p.values()))(trainable)
    updates, state = optimizer.update(gradients, state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    return (trainable, state), trainable

  # These run for milliseconds and compile for seconds.
  @functools.partial(
      jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  def run(trainable):
    start = (trainable, optimizer.init(trainable))
    return jax.lax.scan(step, start, length=steps)

  # Optax raises a float to an integer count in its Adams.
  with jax.numpy_dtype_promotion('standard'):
    (_, state), trajectory = jax.device_get(run(trainable))
  return [frozen | {path: x[i] for path, x in trajectory.items()}
          for i in range(steps)], state


def paths_in(state):
  """The parameters that an optimiser state has arrays for."""
  found = set()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    keys = {getattr(entry, 'key', None) for entry in path} & set(SIZES)
    assert len(keys) <= 1
    assert keys or leaf.size == 1, 'an array that belongs to no parameter'
    found |= keys
  return found


@LAWS
def test_labels_name_what_is_trained(definition, trained):
  assert definition.labels(SIZES).keys() == set(trained)
  assert definition.labels(list(SIZES)) == definition.labels(SIZES)


@LAWS
def test_training_under_jit_moves_what_the_labels_name(definition, trained):
  before = parameters()
  (*_, after), state = train(definition)
  moved = {path for path in before if np.any(before[path] != after[path])}
  assert moved == set(trained)
  assert all(after[p].shape == before[p].shape for p in before)
  assert all(after[p].dtype == before[p].dtype for p in before)
  assert all(np.isfinite(x).all() for x in after.values())
  if definition is not DEFINITIONS['sgd'][0]:
    assert paths_in(state) == set(trained)


# The loss is convex with its minimum at zero.
@LAWS
def test_training_goes_downhill(definition, trained):
  before, ((after, *_), _) = parameters(), train(definition)
  for path in trained:
    assert np.sum(np.cosh(after[path])) < np.sum(np.cosh(before[path])), path


def test_each_optimiser_updates_its_own_parameters_by_its_own_rule():
  before = parameters()
  (after,), _ = train(multi(
      (only('/encoder/prompt/.*'), optimizers.sgd(0.25)),
      (only('.*/scale'), optimizers.chain([optax.sign_sgd(0.125)])),
      (only('/decoder/.*'), adafactor.Adafactor(
          multiply_by_parameter_scale=False))), steps=1)
  expected = {PROMPT: 0.25 * np.sinh(before[PROMPT]),
              SCALE: 0.125 * np.sign(before[SCALE]),
              TASK: RATE * np.sign(before[TASK])}
  for path, step in expected.items():
    np.testing.assert_allclose(
        before[path] - after[path], step, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', (*OPTAX, 'fromage', 'noisy_sgd'))
def test_a_name_of_optax_is_the_optimiser_of_that_name(name):
  assert getattr(optimizers, name).__wrapped__ is getattr(optax, name)


WARMUP = optax.linear_schedule(0.0, 1.0, 10)


# Only our own rules follow the trainer's schedule; optax's keep their own.
@pytest.mark.parametrize('definition,absolute_step', [
    (adafactor.Adafactor(), True),
    (multi((only('.*'), adafactor.Adafactor())), True),
    (optimizers.sgd(WARMUP), False),
    (multi((only('.*'), optimizers.sgd(WARMUP))), False)])
def test_who_sees_the_schedule_and_which_step(definition, absolute_step):
  seen = []

  def schedule(step):
    seen.append(step)
    return jnp.float32(step >= FIRST_STEP + 1)

  optimizer = definition.transformation(schedule, FIRST_STEP)
  p = {PROMPT: jnp.ones((2, 2))}
  state = optimizer.init(p)
  update = jax.jit(optimizer.update)
  first, state = update(p, state, p)
  second, _ = update(p, state, p)
  assert not np.any(first[PROMPT]) and np.all(second[PROMPT] < 0)
  assert bool(seen) == absolute_step


def test_one_parameter_has_one_optimiser():
  definition = multi((only('.*/prompt/.*'), FACTORED),
                     (where(lambda path: path.startswith('/encoder')),
                      optimizers.adam(0.1)))
  with pytest.raises(ValueError, match=f'{PROMPT} is selected by two'):
    definition.labels(SIZES)


# A regex with a slip of the pen, and the parameter that was meant.
@pytest.mark.parametrize('regexes,culprit,nearest', [
    (['.*/promt/.*'], '.*/promt/.*', '/' + PROMPT),
    (['encoder/prompt/prompt/prompt'], 'encoder/prompt/prompt/prompt',
     '/' + PROMPT),
    (['.*/prompt/.*', '/encoder/encoder_norms/scale'],
     '/encoder/encoder_norms/scale', '/' + SCALE),
    (['/token_embedder/embed'], '/token_embedder/embed', '/' + EMBEDDING),
])
def test_a_regex_without_match_names_the_nearest_path(
    regexes, culprit, nearest):
  message = f'{re.escape(repr(culprit))} matches no .*Nearest: {nearest}'
  with pytest.raises(ValueError, match=message):
    multi((only(*regexes), FACTORED)).labels(SIZES)


@pytest.mark.parametrize('traversal', [
    where(lambda path: False), where(lambda path: path == PROMPT), only()])
def test_a_traversal_that_selects_nothing_is_refused(traversal):
  with pytest.raises(ValueError, match=r'no parameter.*5 parameters'):
    multi((only('.*/prompt/.*'), FACTORED), (traversal, FACTORED)).labels(SIZES)


@pytest.mark.parametrize('regex,leading_slash,matches', [
    ('.*/prompt', False, True), ('.*/prompt', True, True),
    ('encoder/.*', False, True), ('encoder/.*', True, False),
    ('/encoder/.*', False, False), ('/encoder/.*', True, True),
    ('prompt', False, False)])
def test_a_regex_matches_whole_paths(regex, leading_slash, matches):
  if matches:
    optimizers.require_match(regex, [PROMPT], leading_slash=leading_slash)
    return
  with pytest.raises(ValueError, match=PROMPT):
    optimizers.require_match(regex, [PROMPT], leading_slash=leading_slash)


def test_the_traversal_sees_what_flax_says_it_sees():
  seen = []
  multi((where(lambda path: seen.append(path) or True), FACTORED)).labels(SIZES)
  assert set(seen) == {'/' + path for path in SIZES}
