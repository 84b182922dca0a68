import logging
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from prompt_tuning import numpy_files
from prompt_tuning import prompts
import pytest
from t5x import checkpoints
from t5x import train_state

P, H, V = 6, 8, 50
KEY = jax.random.key(3)
TABLE = np.random.default_rng(0).normal(size=(V, H)).astype(np.float32)
FULL = nn.initializers.constant(7.0)


class NumberVocabulary:
  """Words are the ids of their tokens."""

  eos_id = 1

  def encode(self, text: str) -> list[int]:
    return [int(word) for word in text.split()]


VOCABULARY = NumberVocabulary()

# Every way to start a prompt; a new one goes through every law below.
INITIALIZERS = {
    'uniform': prompts.symmetric_uniform(),
    'normal': prompts.standard_normal(),
    'array': prompts.from_array(TABLE[:P]),
    'float64 array': prompts.from_array(TABLE[:P].astype(np.float64)),
    'sample': prompts.from_sample_of_embeddings(TABLE),
    'sample of some': prompts.from_sample_of_embeddings(TABLE, 20),
    'sample of fewer': prompts.from_sample_of_embeddings(TABLE, P - 2),
    'any': prompts.from_any_embeddings(TABLE),
    'any of fewer': prompts.from_any_embeddings(TABLE[:P - 2]),
    'repeated string': prompts.from_repeated_string(TABLE, VOCABULARY, '4 5'),
    'repeated nothing': prompts.from_repeated_string(TABLE, VOCABULARY, ''),
    'list': prompts.from_embedded_list(TABLE, VOCABULARY, ['4', '5 6 7']),
    'long list': prompts.from_embedded_list(TABLE, VOCABULARY, ['4'] * 9),
    'empty list': prompts.from_embedded_list(TABLE, VOCABULARY, []),
    'list and sample': prompts.from_embedded_list(
        TABLE, VOCABULARY, ['1 2'], prompts.from_sample_of_embeddings(TABLE)),
    'string': prompts.from_embedded_string(TABLE, VOCABULARY, '4 5 5'),
    'long string': prompts.from_embedded_string(TABLE, VOCABULARY, '4 ' * 9),
    'string and uniform': prompts.from_embedded_string(
        TABLE, VOCABULARY, '4', prompts.symmetric_uniform()),
}
WITHOUT_CHANCE = ['array', 'float64 array', 'long list', 'long string',
                  'repeated string', 'repeated nothing']
every_initializer = pytest.mark.parametrize('name', INITIALIZERS)


@every_initializer
@pytest.mark.parametrize('shape', [(P, H), [P, H]], ids=['tuple', 'list'])
def test_law_shape_and_dtype(name, shape):
  prompt = INITIALIZERS[name](KEY, shape)
  assert prompt.shape == (P, H)
  assert prompt.dtype == jnp.float32
  assert np.isfinite(prompt).all()


@every_initializer
def test_law_the_key_decides(name):
  first = INITIALIZERS[name](KEY, (P, H))
  other = INITIALIZERS[name](jax.random.key(4), (P, H))
  np.testing.assert_array_equal(INITIALIZERS[name](KEY, (P, H)), first)
  assert np.array_equal(other, first) == (name in WITHOUT_CHANCE)


@every_initializer
def test_law_compiled_equals_eager(name):
  compiled = jax.jit(lambda key: INITIALIZERS[name](key, (P, H)))(KEY)
  np.testing.assert_array_equal(compiled, INITIALIZERS[name](KEY, (P, H)))


@pytest.mark.parametrize('name', sorted(
    INITIALIZERS.keys() - {'uniform', 'normal'}))
def test_law_another_width_is_refused(name):
  with pytest.raises(ValueError, match=f'{H}.*{H + 1}'):
    INITIALIZERS[name](KEY, (P, H + 1))


@pytest.mark.parametrize('scale', [0.5, 0.01, 3.0])
def test_uniform_covers_both_sides_evenly(scale):
  values = np.asarray(prompts.symmetric_uniform(scale)(KEY, (100, 100)))
  assert np.abs(values).max() <= scale
  # Each tenth of [-scale, scale] gets a tenth of 10,000: 1,000, sd 30.
  counts, _ = np.histogram(values, bins=10, range=(-scale, scale))
  assert counts.sum() == values.size
  assert np.abs(counts - 1000).max() < 6 * 30


def test_normal_is_standard():
  values = np.sort(np.ravel(prompts.standard_normal()(KEY, (100, 100))))
  # The share below each of some thresholds, of 10,000: sd half a percent.
  for threshold, share in [(-2, 0.0228), (-1, 0.1587), (0, 0.5), (1, 0.8413)]:
    assert np.mean(values < threshold) == pytest.approx(share, abs=0.02)


def rows_of(prompt):
  """Which row of the table each vector is; all rows differ."""
  same = (np.asarray(prompt)[:, None, :] == TABLE[None]).all(-1)
  np.testing.assert_array_equal(same.sum(axis=1), 1)
  return same.argmax(axis=1)


@pytest.mark.parametrize('population', [P, 20, V, None])
def test_sample_draws_distinct_rows_of_the_first(population):
  initializer = prompts.from_sample_of_embeddings(TABLE, population)
  drawn = [rows_of(initializer(jax.random.key(seed), (P, H)))
           for seed in range(60)]
  size = V if population is None else population
  assert all(len(set(rows)) == P for rows in drawn)
  # Each row is left out of 60 draws with a chance of 0.88^60 = 5e-4 at most.
  assert set(np.ravel(drawn)) == set(range(size))
  assert len({tuple(rows) for rows in drawn}) > 50


def test_sample_is_the_draw_of_the_reference():
  initializer = prompts.from_sample_of_embeddings(TABLE, 20)
  rows = jax.random.choice(KEY, 20, (P,), replace=False)
  np.testing.assert_array_equal(
      rows_of(initializer(KEY, (P, H))), rows)


def test_sample_repeats_rows_only_for_a_longer_prompt(caplog):
  initializer = prompts.from_sample_of_embeddings(TABLE, 5)
  assert set(rows_of(initializer(KEY, (5, H)))) == set(range(5))
  assert not caplog.records
  rows = rows_of(initializer(KEY, (200, H)))
  assert set(rows) == set(range(5))
  assert re.search(r'longer \(200\).*population \(5\)', caplog.text)


def test_sample_of_more_than_there_is_takes_all_and_warns(caplog):
  initializer = prompts.from_sample_of_embeddings(TABLE, V + 1)
  assert caplog.records[0].levelno == logging.WARNING
  assert '51' in caplog.text and '50' in caplog.text
  assert set(rows_of(initializer(KEY, (V, H)))) == set(range(V))


@pytest.mark.parametrize('population', [0, -1])
def test_sample_of_nothing_is_refused_at_once(population):
  with pytest.raises(ValueError, match=f'population_size is {population}'):
    prompts.from_sample_of_embeddings(TABLE, population)


def test_any_draws_each_row_on_its_own():
  initializer = prompts.from_any_embeddings(TABLE)
  rows = rows_of(initializer(KEY, (100 * V, H)))
  counts = np.bincount(rows, minlength=V)  # 100 of each, sd 10.
  assert np.abs(counts - 100).max() < 60
  assert np.std(counts) > 5  # Independent draws are not even.


# What peft 0.21.2 makes of the same tokens and the end token 1.
@pytest.mark.parametrize('text,length,expected', [
    ('4 5 6', 6, [4, 5, 6, 1, 4, 5]), ('4 5 6', 4, [4, 5, 6, 1]),
    ('4 5 6', 2, [4, 5]), ('4 5 6', 9, [4, 5, 6, 1, 4, 5, 6, 1, 4]),
    ('', 3, [1, 1, 1])])
def test_repeated_string_is_trimmed_or_repeated(text, length, expected):
  prompt = prompts.from_repeated_string(TABLE, VOCABULARY, text)(
      KEY, (length, H))
  np.testing.assert_array_equal(prompt, TABLE[expected])


@pytest.mark.parametrize('text,eos,match', [
    (['positive'], 1, 'expected one text'), ('4', None, 'no end token')])
def test_repeated_string_needs_a_text_and_an_end(text, eos, match):
  vocabulary = NumberVocabulary()
  vocabulary.eos_id = eos
  with pytest.raises(ValueError, match=match):
    prompts.from_repeated_string(TABLE, vocabulary, text)


@pytest.mark.parametrize('texts', [
    ['3', '10 20 30 40', '7 7', '0'], ['1 2'] * P, []],
    ids=['some', 'all', 'none'])
def test_list_is_the_mean_per_text_then_filler(texts, caplog):
  prompt = prompts.from_embedded_list(TABLE, VOCABULARY, texts, FULL)(
      KEY, (P, H))
  expected = np.full((P, H), 7.0)
  for place, text in enumerate(texts):
    ids = [int(word) for word in text.split()]
    expected[place] = sum(TABLE[i].astype(np.float64) for i in ids) / len(ids)
  np.testing.assert_allclose(prompt, expected, rtol=1e-6, atol=1e-6)
  assert not caplog.records


def test_list_leaves_out_what_does_not_fit_and_warns(caplog):
  texts = [str(i) for i in range(P + 2)]
  prompt = prompts.from_embedded_list(TABLE, VOCABULARY, texts)(KEY, (P, H))
  np.testing.assert_array_equal(prompt, TABLE[:P])
  assert re.search(f'first {P} of {P + 2} texts', caplog.text)


def test_list_with_an_empty_text_is_refused():
  initializer = prompts.from_embedded_list(TABLE, VOCABULARY, ['3', ''])
  with pytest.raises(ValueError, match="''"):
    initializer(KEY, (P, H))


@pytest.mark.parametrize('text', ['9', '4 4 2', '1 2 3 4 5 6'])
def test_string_is_token_by_token_then_filler(text, caplog):
  prompt = prompts.from_embedded_string(TABLE, VOCABULARY, text, FULL)(
      KEY, (P, H))
  ids = [int(word) for word in text.split()]
  np.testing.assert_array_equal(prompt[:len(ids)], TABLE[ids])
  np.testing.assert_array_equal(
      prompt[len(ids):], np.full((P - len(ids), H), 7.0))
  assert not caplog.records


def test_string_is_cut_and_warns(caplog):
  text = '1 2 3 4 5 6 7'
  prompt = prompts.from_embedded_string(TABLE, VOCABULARY, text)(KEY, (P, H))
  np.testing.assert_array_equal(prompt, TABLE[1:P + 1])
  assert re.search(f'7 tokens.* first {P}', caplog.text)


@pytest.mark.parametrize('make,given', [
    (prompts.from_embedded_list, ['1', '2']),
    (prompts.from_embedded_string, '1 2')], ids=['list', 'string'])
def test_filler_is_the_initializers_own_rows(make, given):
  filler = prompts.symmetric_uniform()
  prompt = make(TABLE, VOCABULARY, given, filler)(KEY, (P, H))
  np.testing.assert_array_equal(prompt[2:], filler(KEY, (P, H))[2:])
  plain = np.asarray(make(TABLE, VOCABULARY, given)(KEY, (P, H)))[2:]
  assert (plain >= 0).all() and (plain < 0.01).all() and plain.std() > 0.001


@pytest.mark.parametrize('shape', [(P + 1, H), (P, H + 1), (H, P), (P,)])
def test_array_of_another_shape_is_refused(shape):
  with pytest.raises(ValueError, match=r'\[6, 8\].*PROMPT_LENGTH'):
    prompts.from_array(TABLE[:P])(KEY, shape)


def test_array_is_kept_as_it_is():
  other = jax.random.key(99)
  for key in (KEY, other):
    np.testing.assert_array_equal(
        prompts.from_array(TABLE[:P])(key, (P, H)), TABLE[:P])


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
  """A run with one save, of step 12."""
  folder = tmp_path_factory.mktemp('run')
  moved = {'token_embedder/embedding': jnp.asarray(TABLE),
           'encoder/prompt/prompt/prompt': jnp.asarray(TABLE[:P])}
  state = train_state.TrainState(
      step=jnp.int32(12), trainable=moved, frozen={},
      opt_state=optax.sgd(0.1).init(moved))
  checkpoints.Checkpointer(str(folder)).save(
      state, checkpoints.RunRecord(first_step=0, seed=0))
  return folder


@pytest.mark.parametrize('variable', [
    'token_embedder/embedding', '/token_embedder/embedding',
    'target/token_embedder/embedding', '/target/token_embedder/embedding'])
@pytest.mark.parametrize('folder', ['', 'checkpoint_12'])
def test_variable_of_our_checkpoint(run_folder, folder, variable):
  found = prompts.t5x_load(str(run_folder / folder), variable)
  np.testing.assert_array_equal(found, TABLE, strict=True)


def test_variable_can_be_converted(run_folder):
  found = prompts.t5x_load(
      str(run_folder), 'token_embedder/embedding', 'float64')
  np.testing.assert_array_equal(
      found, TABLE.astype(np.float64), strict=True)


def test_unknown_variable_names_what_exists(run_folder):
  with pytest.raises(KeyError, match=(
      r"'token_embedder/table'; it has 2: encoder/prompt/prompt/prompt, "
      'token_embedder/embedding')):
    prompts.t5x_load(str(run_folder), 'token_embedder/table')


@pytest.mark.parametrize(
    'path', ['', 'checkpoint_3', 'checkpoint_3/checkpoint'])
def test_variable_of_the_published_checkpoint(shared_data, path):
  found = prompts.t5x_load(
      str(shared_data / 't5x_tiny' / path), 'target/token_embedder/embedding')
  published = np.load(shared_data / 'tiny_embeddings_32128x4.npy')
  np.testing.assert_array_equal(found, published, strict=True)


@pytest.mark.parametrize('dtype', [None, 'float32', 'float16'])
def test_np_load_converts_when_asked(tmp_path, dtype):
  path = str(tmp_path / 'prompt')
  numpy_files.write(path, TABLE.astype(np.float64) / 3)
  found = prompts.np_load(path, dtype)
  np.testing.assert_array_equal(
      found, (TABLE.astype(np.float64) / 3).astype(dtype or np.float64),
      strict=True)


# The norms are those of the table beside the published prompts.
@pytest.mark.parametrize('task,mean,least,most', [
    ('sst2', 1384.9, 343.6, 2177.2), ('rte', 903.3, 234.9, 2003.6)])
def test_published_prompt_starts_another(shared_data, task, mean, least, most):
  path = shared_data / 'pretrained_prompts' / f'{task}.npy'
  prompt = prompts.from_array(prompts.np_load(str(path)))(KEY, (100, 768))
  norms = np.linalg.norm(np.asarray(prompt, np.float64), axis=1)
  np.testing.assert_allclose(
      [norms.mean(), norms.min(), norms.max()], [mean, least, most], atol=0.1)


def test_class_labels_with_the_published_vocabulary(shared_data):
  import seqio
  vocabulary = seqio.SentencePieceVocabulary(
      str(shared_data / 't5_sentencepiece.model'), extra_ids=100)
  table = prompts.np_load(str(shared_data / 'tiny_embeddings_32128x4.npy'))
  prompt = prompts.from_embedded_list(
      table, vocabulary, ['positive', 'negative', 'entailment'], FULL)(
          KEY, (4, 4))
  expected = [table[1465], table[2841], table[[3, 35, 5756, 297]].mean(0),
              np.full(4, 7.0)]
  np.testing.assert_allclose(prompt, np.stack(expected), rtol=1e-6)


@pytest.mark.parametrize('shape', [(), (3,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize('rows', [(5,), (5, 3), (1, 2, 2)])
def test_expanding_repeats_for_every_row(shape, rows):
  x = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
  expanded = prompts.expand_to_batch(x, jnp.zeros(rows, jnp.int32))
  np.testing.assert_array_equal(
      expanded, np.stack([x] * rows[0]), strict=True)


TOKENS = jnp.ones((2, 3), jnp.int32)
EMBEDDED = jnp.ones((2, 3, H))


def test_prompt_is_one_float32_parameter_that_names_its_axes():
  module = prompts.Prompt(
      length=P, prompt_init=INITIALIZERS['sample'], dtype=jnp.bfloat16)
  out, variables = module.init_with_output(KEY, TOKENS, EMBEDDED)
  assert variables.keys() == {'params'}
  assert variables['params'].keys() == {'prompt'}
  box = variables['params']['prompt']
  assert box.names == ('prompt', 'prompt_embed')
  assert (box.value.shape, box.value.dtype) == ((P, H), jnp.float32)
  np.testing.assert_array_equal(
      out, box.value.astype(jnp.bfloat16), strict=True)


def test_prompt_is_its_parameter_whatever_the_input():
  module = prompts.Prompt(length=P)
  given = {'params': {'prompt': jnp.asarray(TABLE[:P])}}
  for embedded in (EMBEDDED, 5 * EMBEDDED):
    np.testing.assert_array_equal(
        module.apply(given, TOKENS, embedded), TABLE[:P])


@pytest.mark.parametrize('name', WITHOUT_CHANCE)
def test_prompt_starts_as_its_initializer_says(name):
  module = prompts.Prompt(length=P, prompt_init=INITIALIZERS[name])
  prompt, _ = module.init_with_output(KEY, TOKENS, EMBEDDED)
  np.testing.assert_array_equal(
      prompt, INITIALIZERS[name](KEY, (P, H)), strict=True)


def test_published_float64_prompt_becomes_a_float32_parameter(shared_data):
  path = str(shared_data / 'prompt_5x256.npy')
  module = prompts.Prompt(
      length=5, prompt_init=prompts.from_array(prompts.np_load(path)))
  prompt, _ = module.init_with_output(KEY, TOKENS, jnp.ones((2, 3, 256)))
  np.testing.assert_array_equal(
      prompt, np.load(path).astype(np.float32), strict=True)


def test_prompt_for_inference_is_no_parameter():
  module = prompts.InferenceOnlyPrompt(
      length=P, embed_dim=H, prompt_init=INITIALIZERS['sample'])
  first, variables = module.init_with_output(KEY, TOKENS, EMBEDDED)
  assert not variables
  again = module.apply({}, TOKENS, EMBEDDED, rngs={'params': KEY})
  np.testing.assert_array_equal(again, first)
  np.testing.assert_array_equal(
      first, INITIALIZERS['sample'](jax.random.key(0), (P, H)))


def test_prompt_for_inference_comes_in_its_dtype():
  module = prompts.InferenceOnlyPrompt(
      length=P, embed_dim=H, prompt_init=INITIALIZERS['array'],
      dtype=jnp.bfloat16)
  np.testing.assert_array_equal(
      module.apply({}, TOKENS, EMBEDDED), jnp.asarray(TABLE[:P], jnp.bfloat16),
      strict=True)


def test_class_labels_given_as_one_text_are_refused():
  with pytest.raises(ValueError, match='CLASS_LABELS.*list of texts'):
    prompts.from_embedded_list(np.ones((4, 2)), None, 'positive,negative')
