import dataclasses
import shutil

import numpy as np
import pytest
from t5x import checkpoints
from t5x import fingerprint
from t5x import hugging_face
from t5x import inference_state
from t5x import partitioning

PROMPT = 'encoder/prompt/prompt/prompt'
LEAVE_PROMPT = (('.*prompt.*', None),)
RULES = (('prompt', None), ('prompt_embed', None))
RECORD = checkpoints.RunRecord(first_step=0, seed=7)


@pytest.fixture(scope='module')
def base(tiny, tmp_path_factory):
  """A checkpoint of a whole model at step 12, and its parameters by path."""
  folder = tmp_path_factory.mktemp('base')
  _, state = tiny.start(tiny.model(), first_step=12, seed=5)
  checkpoints.Checkpointer(str(folder)).save(state, RECORD)
  return str(folder / 'checkpoint_12'), {
      path: np.asarray(x) for path, x in state.trainable.items()}


@pytest.fixture(scope='module')
def run(tiny, base, tmp_path_factory):
  """A run's folder with prompts of 14 and 16 steps over `base`."""
  path, values = base
  folder = tmp_path_factory.mktemp('run')
  record = dataclasses.replace(RECORD, base=checkpoints.BaseRecord(
      path, 12, fingerprint.fingerprint(values)))
  prompts = {}
  for step in (14, 16):
    _, state = tiny.start(
        tiny.model('.*prompt.*', prompt_length=3), first_step=step, seed=step)
    checkpoints.Checkpointer(str(folder)).save(state, record)
    prompts[step] = np.asarray(state.trainable[PROMPT])
  return folder, prompts


def _restorer(tiny, restore, *, prompt_length=0, **options):
  partitioner = partitioning.PjitPartitioner(
      2, logical_axis_rules=partitioning.standard_logical_axis_rules(
          additional_rules=RULES))
  return inference_state.Restorer(
      tiny.model(prompt_length=prompt_length), partitioner, restore,
      tiny.SHAPES, **options)


def _restore(path, **options):
  return checkpoints.RestoreCheckpointConfig(path=str(path), **options)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', None])
def test_dtype_on_restore(tiny, base, dtype):
  path, _ = base
  state = _restorer(tiny, _restore(path, dtype=dtype)).state(path)
  dtypes = {str(x.dtype) for x in state.frozen.values()}
  assert dtypes == {dtype or 'float32'}
  assert int(state.step) == 12


def test_inference_without_a_seed_initialises_nothing(tiny, base):
  path, _ = base
  restorer = _restorer(tiny, _restore(
      path, assignment_map=LEAVE_PROMPT, fallback_to_scratch=True),
                       prompt_length=3)
  with pytest.raises(checkpoints.CheckpointError, match='fallback_init_rng'):
    restorer.state(path)


# With the rules of a model file of prompts, and with none.
@pytest.mark.parametrize('rules', [
    {}, {'assignment_map': LEAVE_PROMPT, 'fallback_to_scratch': True}])
@pytest.mark.parametrize('dtype', ['bfloat16', None])
def test_a_run_is_its_base_and_what_it_trained(tiny, base, run, rules, dtype):
  _, values = base
  folder, prompts = run
  restore = _restore(folder, mode='all', dtype=dtype, **rules)
  restorer = _restorer(tiny, restore, prompt_length=3)
  found = inference_state.directories(restore)
  assert found == [str(folder / 'checkpoint_14'), str(folder / 'checkpoint_16')]
  for directory, (step, prompt) in zip(found, prompts.items(), strict=True):
    state = restorer.state(directory)
    assert int(state.step) == step
    assert state.frozen.keys() == {*values, PROMPT}
    for path, value in (values | {PROMPT: prompt}).items():
      dtype_here = restorer.infos[path].dtype
      np.testing.assert_array_equal(
          state.frozen[path], value.astype(dtype_here), err_msg=path)
    if dtype:
      assert state.frozen['encoder/encoder_norm/scale'].dtype == dtype


def test_the_base_is_read_once_for_a_whole_run(tiny, run):
  folder, _ = run
  restorer = _restorer(tiny, _restore(folder, mode='all'), prompt_length=3)
  first, second = (restorer.state(str(folder / f'checkpoint_{step}'))
                   for step in (14, 16))
  shared = 'encoder/encoder_norm/scale'
  assert first.frozen[shared] is second.frozen[shared]


def test_a_moved_base_is_named_and_can_be_found_again(
    tiny, base, run, tmp_path):
  path, _ = base
  folder, prompts = run
  moved, copy = str(tmp_path / 'moved'), tmp_path / 'checkpoint_14'
  shutil.copytree(path, moved)
  shutil.copytree(folder / 'checkpoint_14', copy)
  gone = _rewritten(copy, base=lambda b: b | {'path': '/nowhere'})
  restore = _restore(gone)
  with pytest.raises(checkpoints.CheckpointError,
                     match=r'/nowhere.*BASE_CHECKPOINT_PATH'):
    _restorer(tiny, restore, prompt_length=3).state(gone)
  state = _restorer(tiny, restore, prompt_length=3,
                    base_checkpoint_path=moved).state(gone)
  np.testing.assert_array_equal(state.frozen[PROMPT], prompts[14])


def test_a_base_may_be_a_folder_of_hugging_face(tiny, base, run, tmp_path):
  path, values = base
  folder, prompts = run
  moved = tmp_path / 'moved'
  hugging_face.write(str(moved), checkpoints.open_checkpoint(path))
  save = str(folder / 'checkpoint_14')
  restorer = _restorer(tiny, _restore(save), prompt_length=3,
                       base_checkpoint_path=str(moved))
  state = restorer.state(save)
  np.testing.assert_array_equal(state.frozen[PROMPT], prompts[14])
  for name, value in values.items():
    np.testing.assert_array_equal(state.frozen[name], value)
  # Another function of the same weights.
  config = moved / 'config.json'
  config.write_text(config.read_text().replace(': 128,', ': 64,'))
  says = 'relpos_max_distance is 128 but should be 64'
  with pytest.raises(checkpoints.CheckpointError, match=says):
    _restorer(tiny, _restore(save), prompt_length=3,
              base_checkpoint_path=str(moved)).state(save)
  with pytest.raises(checkpoints.CheckpointError, match=says):
    _restorer(tiny, _restore(moved)).state(str(moved))


def test_another_base_is_refused(tiny, run, tmp_path):
  folder, _ = run
  _, other = tiny.start(tiny.model(), first_step=12, seed=6)
  checkpoints.Checkpointer(str(tmp_path)).save(other, RECORD)
  with pytest.raises(checkpoints.CheckpointError,
                     match='holds other parameters'):
    _restorer(
        tiny, _restore(folder, mode='latest'), prompt_length=3,
        base_checkpoint_path=str(tmp_path / 'checkpoint_12')).state(
            str(folder / 'checkpoint_16'))


def test_a_prompt_from_a_file_and_one_from_the_run_contradict(tiny, run):
  folder, _ = run
  restore = _restore(
      folder, assignment_map=LEAVE_PROMPT, fallback_to_scratch=True)
  with pytest.raises(checkpoints.CheckpointError, match='PROMPT_FILE'):
    _restorer(tiny, restore, prompt_length=3, seed=0).state(
        str(folder / 'checkpoint_16'))


@pytest.mark.parametrize('length', [0, 4])
def test_a_model_of_another_prompt_is_refused(tiny, run, length):
  folder, _ = run
  with pytest.raises(checkpoints.CheckpointError, match='PROMPT_LENGTH'):
    _restorer(tiny, _restore(folder), prompt_length=length).state(
        str(folder / 'checkpoint_16'))


@pytest.mark.parametrize('mode,path', [
    ('all', '{run}/checkpoint_14'), ('all', '/nowhere'),
    ('specific', '{run}'), ('latest', '/nowhere'), ('specific', None)])
def test_a_path_that_does_not_suit_its_mode_is_refused(run, mode, path):
  path = path and path.format(run=run[0])
  with pytest.raises(checkpoints.CheckpointError):
    inference_state.directories(
        checkpoints.RestoreCheckpointConfig(path=path, mode=mode))


def _rewritten(folder, base):
  """Changes a save's record as if it had been written so."""
  import json

  from etils import epath
  from t5x import manifest
  file = folder / 'record.json'
  record = json.loads(file.read_text())
  record['base'] = base(record['base'])
  file.write_text(json.dumps(record))
  manifest.write(epath.Path(folder))
  return str(folder)


@pytest.mark.parametrize('dtype', ['bfloat16', None])
def test_a_frozen_model_is_shown_to_checks_without_what_is_made_anew(
    tiny, base, dtype):
  path, values = base
  shown = []
  restore = _restore(
      path, assignment_map=LEAVE_PROMPT, fallback_to_scratch=True, dtype=dtype,
      base_checks=[lambda parameters, directory: shown.append(
          (sorted(parameters), directory))])
  state = _restorer(tiny, restore, prompt_length=3, seed=0).state(path)
  assert PROMPT in state.frozen
  assert shown == [(sorted(values), path)]


def test_what_a_run_trained_needs_no_check(tiny, run):
  folder, _ = run

  def refuse(parameters, directory):
    raise ValueError('asked')

  restore = _restore(folder, base_checks=[refuse])
  _restorer(tiny, restore, prompt_length=3).state(
      str(folder / 'checkpoint_16'))
