import dataclasses
import hashlib
import json
import re
import shutil

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from prompt_tuning import numpy_files
from prompt_tuning import prompt_artifacts
from prompt_tuning import prompt_files
from prompt_tuning import prompts
from prompt_tuning.train import numpy_checkpoints
from prompt_tuning.train import utils
import pytest
from t5x import checkpoints
from t5x import optimizers
from t5x import train_state

PATH = 'encoder/prompt/prompt/prompt'
NAME = 'encoder.prompt.prompt.prompt'
TABLE = 'token_embedder/embedding'
VALUES = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
RECORD = checkpoints.RunRecord(first_step=0, seed=0)


@pytest.mark.parametrize('regexes,path,chosen', [
    (['.*/prompt/.*'], f'/{PATH}', True),
    (['.*/prompt/.*'], PATH, True),
    ([f'/{PATH}'], f'/{PATH}', True),
    ([f'/{PATH}'], PATH, False),
    (['/encoder/prompt'], f'/{PATH}', False),
    (['prompt'], f'/{PATH}', False),
    (['.*prompt'], f'/{PATH}s', False),
    (['nothing', '.*prompt'], f'/{PATH}', True),
    (['.*prompt', 'nothing'], f'/{PATH}', True),
    ([r'/a\.b'], '/a/b', False),
    ([], f'/{PATH}', False),
])
def test_match_any_asks_for_the_whole_path(regexes, path, chosen):
  assert numpy_checkpoints.match_any(regexes)(path, None) is chosen


def test_match_any_selects_what_a_traversal_walks_over():
  tree = {'encoder': {'prompt': {'prompt': {'prompt': 1}}, 'mlp': 2},
          'prompt': 3}
  traversal = traverse_util.ModelParamTraversal(
      numpy_checkpoints.match_any(['.*/prompt/.*']))
  assert list(traversal.iterate(tree)) == [1]


def test_match_any_tells_which_regex_selects_nothing():
  keep = numpy_checkpoints.match_any(['.*/prompt/.*', '.*/prmpt/.*'])
  definition = optimizers.MultiOptimizer(
      [(traverse_util.ModelParamTraversal(keep), optimizers.OptimizerDef())])
  with pytest.raises(ValueError, match=re.escape("'.*/prmpt/.*'")):
    definition.labels([PATH, TABLE])


def test_published_names_are_these():
  assert utils.Checkpointer is numpy_checkpoints.Checkpointer
  assert utils.match_any is numpy_checkpoints.match_any
  assert utils.np_save is numpy_checkpoints.np_save


def test_np_save_is_read_by_numpy(tmp_path):
  numpy_checkpoints.np_save(str(tmp_path / 'a' / 'b'), jnp.asarray(VALUES))
  np.testing.assert_array_equal(np.load(tmp_path / 'a' / 'b'), VALUES)


def state_with(step, prompt, frozen=None):
  trainable = {PATH: jnp.asarray(prompt)}
  return train_state.TrainState(
      step=jnp.int32(step), trainable=trainable, frozen=frozen or {},
      opt_state=optax.sgd(0.1).init(trainable))


def checkpointer(folder, regexes=('.*/prompt/.*',), **options):
  return numpy_checkpoints.Checkpointer(
      str(folder), save_paths=list(regexes), **options)


def files_below(folder):
  return sorted(str(path.relative_to(folder))
                for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('prompt,dtype', [
    (VALUES, None), (VALUES, 'bfloat16'),
    (jnp.asarray(VALUES, jnp.bfloat16), None)],
    ids=['float32', 'rounded saves', 'bfloat16 parameter'])
def test_prompt_is_one_float32_file(tmp_path, prompt, dtype):
  checkpointer(tmp_path, dtype=dtype).save(
      state_with(1_100_005, prompt), RECORD)
  assert files_below(tmp_path / 'numpy_checkpoints') == [
      f'checkpoint_1100005/{NAME}']
  np.testing.assert_array_equal(
      np.load(tmp_path / 'numpy_checkpoints' / 'checkpoint_1100005' / NAME),
      np.asarray(prompt).astype(np.float32), strict=True)
  assert checkpoints.all_steps(str(tmp_path)) == [1_100_005]


def test_numpy_files_outlive_the_saves_of_the_run(tmp_path):
  saver = checkpointer(tmp_path, keep=1)
  for step in (10, 20, 30):
    saver.save(state_with(step, step * VALUES), RECORD)
  assert checkpoints.all_steps(str(tmp_path)) == [30]
  folder = tmp_path / 'numpy_checkpoints'
  assert files_below(folder) == [
      f'checkpoint_{step}/{NAME}' for step in (10, 20, 30)]
  for step in (10, 20, 30):
    np.testing.assert_array_equal(
        np.load(folder / f'checkpoint_{step}' / NAME), step * VALUES)


def test_chosen_parameters_may_be_frozen_or_cut_over_devices(tmp_path):
  mesh = jax.make_mesh((8,), ('model',),
                       axis_types=(jax.sharding.AxisType.Auto,))
  cut = jax.device_put(VALUES, jax.NamedSharding(
      mesh, jax.sharding.PartitionSpec('model')))
  table = jnp.asarray(VALUES[:3])
  checkpointer(tmp_path, ['.*/prompt', '.*/embedding']).save(
      state_with(7, cut, {TABLE: table, 'encoder/norm/scale': table}), RECORD)
  folder = tmp_path / 'numpy_checkpoints' / 'checkpoint_7'
  # What is not trained is no prompt, and gets no artifact.
  assert files_below(folder) == [
      NAME, *(f'{NAME}.artifact/{file}' for file in (
          'README.md', 'prompt.json', 'prompt.safetensors')),
      'token_embedder.embedding']
  np.testing.assert_array_equal(np.load(folder / NAME), VALUES)
  np.testing.assert_array_equal(
      np.load(folder / 'token_embedder.embedding'), VALUES[:3])


def test_saving_a_step_again_leaves_its_file(tmp_path):
  saver = checkpointer(tmp_path)
  saver.save_numpy({PATH: VALUES}, 7)
  file = tmp_path / 'numpy_checkpoints' / 'checkpoint_7' / NAME
  before = file.stat()
  saver.save_numpy({PATH: VALUES.copy()}, 7)
  after = file.stat()
  assert after.st_ino == before.st_ino
  assert after.st_mtime_ns == before.st_mtime_ns
  assert [p.name for p in file.parents[1].iterdir()] == ['checkpoint_7']


def test_another_content_of_a_step_keeps_the_first_as_backup(tmp_path):
  saver = checkpointer(tmp_path)
  for factor in (1, 2, 3):
    saver.save_numpy({PATH: factor * VALUES}, 7)
  folder = tmp_path / 'numpy_checkpoints'
  np.testing.assert_array_equal(
      np.load(folder / 'checkpoint_7' / NAME), 3 * VALUES)
  backups = [p for p in folder.iterdir() if p.name != 'checkpoint_7']
  assert all(p.name.startswith('checkpoint_7.backup-') for p in backups)
  kept = sorted(np.load(p / NAME)[0, 0] / VALUES[0, 0] for p in backups)
  np.testing.assert_allclose(kept, [1, 2], rtol=1e-6)


FROZEN = {TABLE: jnp.asarray(VALUES), 'encoder/norm/scale': jnp.ones(6)}
BASE = checkpoints.BaseRecord('/models/checkpoint_5', 5, 'f' * 64)


class Vocabulary:
  vocab_size = 8
  eos_id = 1


def test_an_artifact_says_what_a_prompt_was_trained_on(tmp_path):
  (tmp_path / 'config.gin').write_text("TASK = 'rte'\n")
  (tmp_path / 'inference_eval').mkdir()
  (tmp_path / 'inference_eval' / 'rte-metrics.jsonl').write_text(''.join(
      json.dumps(row) + '\n' for row in (
          {'step': 6, 'accuracy': 1.0},
          {'step': 7, 'accuracy': 62.5, 'note': 'text'},
          {'step': 8, 'accuracy': 3.0})))
  parent = tmp_path / 'parent.npy'
  np.save(parent, VALUES + 1)
  saver = checkpointer(
      tmp_path, vocabulary=Vocabulary(), parent=str(parent))
  saver.save(state_with(7, VALUES, FROZEN), dataclasses.replace(
      RECORD, base=BASE, task='rte', seed=3, first_step=5, batch_size=16))
  folder = (tmp_path / 'numpy_checkpoints' / 'checkpoint_7')
  artifact = prompt_artifacts.read(folder / f'{NAME}.artifact')
  np.testing.assert_array_equal(artifact.prompt, VALUES, strict=True)
  assert artifact.record == prompt_artifacts.Record(
      shape=(8, 6), sha256=hashlib.sha256(VALUES.tobytes()).hexdigest(),
      parameter=PATH, task='rte', metrics={'rte/accuracy': 62.5}, seed=3,
      first_step=5, step=7, batch_size=16, recipe="TASK = 'rte'\n",
      parent=prompt_artifacts.Parent(str(parent), hashlib.sha256(
          (VALUES + 1).tobytes()).hexdigest()),
      base=prompt_artifacts.base_of(FROZEN, '/models/checkpoint_5', 5),
      tokenizer=prompt_artifacts.tokenizer_of(Vocabulary()))
  # The folder above is the same prompt, not two.
  np.testing.assert_array_equal(prompt_files.read(str(folder)), VALUES)
  assert prompt_files.parent_of(folder).task == 'rte'


def test_saving_an_artifact_again_leaves_its_files(tmp_path):
  folder = tmp_path / 'numpy_checkpoints'
  before = {}
  for recipe in ('USE_HARDWARE_RNG = False', 'USE_HARDWARE_RNG = True'):
    (tmp_path / 'config.gin').write_text(recipe)
    checkpointer(tmp_path).save(state_with(7, VALUES, FROZEN), RECORD)
    shutil.rmtree(tmp_path / 'checkpoint_7')
    after = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    assert before in ({}, after)
    before = after
  assert [p.name for p in folder.iterdir()] == ['checkpoint_7']
  assert len(before) == 4


def test_a_numpy_file_without_an_artifact_is_left_alone(tmp_path):
  saver = checkpointer(tmp_path)
  saver.save_numpy({PATH: VALUES}, 7)
  saver.save(state_with(7, VALUES, FROZEN), RECORD)
  assert files_below(tmp_path / 'numpy_checkpoints') == [f'checkpoint_7/{NAME}']


def test_a_file_in_the_place_of_a_step_is_not_moved(tmp_path):
  blocked = tmp_path / 'numpy_checkpoints' / 'checkpoint_7'
  blocked.parent.mkdir()
  blocked.write_text('not a folder')
  with pytest.raises(checkpoints.CheckpointError, match='could not be written'):
    checkpointer(tmp_path).save(state_with(7, VALUES, FROZEN), RECORD)
  assert [p.name for p in blocked.parent.iterdir()] == ['checkpoint_7']


@pytest.mark.parametrize('task,recipe,kept', [
    ('rte\udcff', b'', ''), ('rte', b'# caf\xe9\n', '# caf\ufffd\n'),
    ('rte', b'#' * (2**20 + 1), '#' * 2**20)],
    ids=['surrogate', 'latin-1', 'long'])
def test_no_description_keeps_a_prompt_from_being_saved(
    tmp_path, task, recipe, kept):
  (tmp_path / 'config.gin').write_bytes(recipe)
  checkpointer(tmp_path).save(
      state_with(7, VALUES, FROZEN), dataclasses.replace(RECORD, task=task))
  record = prompt_artifacts.read(
      tmp_path / 'numpy_checkpoints' / 'checkpoint_7' / f'{NAME}.artifact'
  ).record
  assert (record.task, record.recipe) == (task, kept)


def test_an_artifact_that_is_refused_leaves_no_trace(tmp_path):
  with pytest.raises(prompt_artifacts.ArtifactError, match='task is'):
    checkpointer(tmp_path).save(
        state_with(7, VALUES, FROZEN),
        dataclasses.replace(RECORD, task='x' * 5000))
  assert not files_below(tmp_path)
  assert not list(tmp_path.rglob('*.tmp-0'))


def test_where_everything_is_trained_there_is_no_artifact(tmp_path):
  checkpointer(tmp_path).save(state_with(7, VALUES), RECORD)
  assert files_below(tmp_path / 'numpy_checkpoints') == [
      f'checkpoint_7/{NAME}']


def test_a_parent_that_cannot_be_read_is_refused_at_once(tmp_path):
  with pytest.raises(ValueError, match='missing.npy'):
    checkpointer(tmp_path, parent=str(tmp_path / 'missing.npy'))


def test_regex_without_a_match_is_refused(tmp_path):
  saver = checkpointer(tmp_path, ['.*/prompt/.*', '.*/prmpt/.*'])
  with pytest.raises(ValueError, match=re.escape("'.*/prmpt/.*'")) as caught:
    saver.save(state_with(7, VALUES), RECORD)
  assert PATH in str(caught.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_prompt_that_is_not_finite_is_refused(tmp_path, value):
  damaged = VALUES.copy()
  damaged[2, 3] = value
  with pytest.raises(numpy_files.NumpyFileError, match=f'{NAME}: 1 of 48'):
    checkpointer(tmp_path).save(state_with(7, damaged), RECORD)
  assert not list(tmp_path.iterdir())


def test_one_bad_parameter_keeps_the_good_ones_from_being_written(tmp_path):
  parameters = {'a/prompt/b': VALUES, PATH: VALUES * np.nan}
  with pytest.raises(numpy_files.NumpyFileError, match=NAME):
    checkpointer(tmp_path).save_numpy(parameters, 7)
  assert not files_below(tmp_path)


def test_interrupted_attempts_leave_no_trace(tmp_path, file_size_limit):
  saver = checkpointer(tmp_path)
  big = np.ones((100, 64), np.float32)
  saver.save_numpy({PATH: VALUES}, 7)
  with file_size_limit(5000), pytest.raises(
      checkpoints.CheckpointError,
      match='checkpoint_7 could not be written .*File too large.* has space'):
    saver.save_numpy({'a/prompt/b': VALUES, PATH: big}, 7)
  folder = tmp_path / 'numpy_checkpoints'
  assert [p.name for p in folder.iterdir()] == ['checkpoint_7']
  # What was there is whole, and no half-written folder looks like a step.
  np.testing.assert_array_equal(
      np.load(folder / 'checkpoint_7' / NAME), VALUES)
  assert len([p for p in folder.iterdir()
              if re.fullmatch(r'checkpoint_\d+', p.name)]) == 1
  # The next attempt takes nothing from the one that failed.
  saver.save_numpy({PATH: big}, 7)
  assert files_below(folder / 'checkpoint_7') == [NAME]
  assert not [p for p in folder.iterdir() if '.tmp' in p.name]


def test_saved_file_starts_another_prompt(tmp_path):
  checkpointer(tmp_path).save(state_with(1_105_000, VALUES), RECORD)
  path = tmp_path / 'numpy_checkpoints' / 'checkpoint_1105000' / NAME
  module = prompts.Prompt(
      length=8, prompt_init=prompts.from_array(prompts.np_load(str(path))))
  variables = module.init(
      jax.random.key(1), jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3, 6)))
  np.testing.assert_array_equal(
      nn.meta.unbox(variables)['params']['prompt'], VALUES, strict=True)
