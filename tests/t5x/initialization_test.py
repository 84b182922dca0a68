import collections
import dataclasses
import sys

from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x import checkpoints
from t5x import initialization
from t5x import inspection
from t5x import partitioning
from t5x import train_state

PROMPT = r'.*/prompt/.*'
LEAVE_PROMPT = (('.*prompt.*', None),)
RECORD = checkpoints.RunRecord(first_step=0, seed=7)


@pytest.fixture(scope='module')
def base(tiny, tmp_path_factory):
  """A checkpoint of a whole model at step 12, and its parameters by path."""
  folder = tmp_path_factory.mktemp('base')
  _, state = tiny.start(tiny.model(), first_step=12, seed=5)
  checkpoints.Checkpointer(str(folder)).save(state, RECORD)
  return str(folder / 'checkpoint_12'), {
      path: np.asarray(x) for path, x in state.trainable.items()}


def _restore(path, **options):
  return checkpoints.RestoreCheckpointConfig(path=path, **options)


def _start(tiny, model, restore, model_dir='/nowhere', seed=0, **trainer):
  origin = initialization.find_origin(str(model_dir), restore, seed)
  made = tiny.trainer(model, first_step=origin.first_step, **trainer)
  return made, tiny.begin(origin, made, restore)


def test_frozen_weights_come_from_the_checkpoint(tiny, base):
  path, values = base
  restore = _restore(
      path, assignment_map=LEAVE_PROMPT, fallback_to_scratch=True)
  _, start = _start(tiny, tiny.model(PROMPT, prompt_length=3), restore)
  assert start.state.frozen.keys() == values.keys()
  for name, value in values.items():
    np.testing.assert_array_equal(start.state.frozen[name], value)
  assert list(start.state.trainable) == ['encoder/prompt/prompt/prompt']
  assert int(start.state.step) == 12 == start.record.first_step
  assert start.record.base.path == path


def test_a_checkpoint_is_hashed_once(tiny, base, tmp_path):
  path, _ = base
  restore = _restore(
      path, assignment_map=LEAVE_PROMPT, fallback_to_scratch=True)
  model = tiny.model(PROMPT, prompt_length=3)

  def begin():
    origin = initialization.find_origin(str(tmp_path), restore, 0)
    inspection.require_fitting_checkpoint(
        origin.initial_checkpoint, restore, tiny.infos(model))
    made = tiny.trainer(model, first_step=origin.first_step)
    return tiny.begin(origin, made, restore)

  start, opened = _opened(begin)
  assert {opened[name] for name in opened if f'{path}/' in name} == {1}
  checkpoints.Checkpointer(str(tmp_path)).save(start.state, start.record)
  _, opened = _opened(begin)
  save = str(tmp_path / 'checkpoint_12')
  for folder in (path, save):
    values = {opened[name] for name in opened if f'{folder}/state/' in name}
    assert values == {1}, folder


def _opened(function):
  """What a function returns, and how often Python opened each file in it."""
  opened = collections.Counter()
  listening = True

  def note(event, arguments):
    if listening and event == 'open':
      opened[str(arguments[0])] += 1

  sys.addaudithook(note)
  try:
    return function(), opened
  finally:
    listening = False


def test_frozen_weights_come_from_the_published_checkpoint(tiny, shared_data):
  path = str(shared_data / 't5x_tiny')
  model = tiny.model(
      PROMPT, prompt_length=3, vocab_size=32128, emb_dim=4, head_dim=2,
      mlp_dim=8, relpos_num_buckets=4)
  restore = _restore(
      path, assignment_map=LEAVE_PROMPT, fallback_to_scratch=True)
  _, start = _start(tiny, model, restore)
  published = checkpoints.open_checkpoint(checkpoints.find_checkpoint(path))
  targets = {n for n in published if n.startswith('target/')}
  assert {f'target/{p}' for p in start.state.frozen} == {
      n for n in targets if 'prompt' not in n}
  for name, value in start.state.frozen.items():
    np.testing.assert_array_equal(
        value, published[f'target/{name}'].get(), err_msg=name)
  assert int(start.state.step) == 3


def test_a_scanned_model_restores_separate_layers(tiny, base):
  path, values = base
  _, start = _start(tiny, tiny.model(scan_layers=True), _restore(path))
  kernel = start.state.trainable['encoder/encoder/mlp/wo/kernel']
  np.testing.assert_array_equal(kernel, np.stack(
      [values[f'encoder/layers_{i}/mlp/wo/kernel'] for i in range(2)], axis=1))
  batch, plain, scanned = tiny.batch(), tiny.model(), tiny.model(
      scan_layers=True)
  separate = jax.tree.map(jnp.asarray, train_state.nested(values))
  np.testing.assert_allclose(
      scanned.score_batch(start.state.params, batch),
      plain.score_batch(separate, batch), rtol=1e-5)


def test_sharded_restore_equals_the_checkpoint(tiny, base):
  path, values = base
  _, start = _start(tiny, tiny.model(), _restore(path), partitions=2)
  kernel = start.state.trainable['encoder/layers_0/mlp/wi_0/kernel']
  assert kernel.sharding.spec == partitioning.PartitionSpec(None, 'model')
  for name, value in values.items():
    np.testing.assert_array_equal(start.state.trainable[name], value)


def test_the_map_renames(tiny, base):
  path, values = base
  swap = ((r'(target/encoder/layers_)0(/mlp/wo/kernel)', r'\g<1>1\2'),)
  _, start = _start(
      tiny, tiny.model(), _restore(path, assignment_map=swap))
  np.testing.assert_array_equal(
      start.state.trainable['encoder/layers_0/mlp/wo/kernel'],
      values['encoder/layers_1/mlp/wo/kernel'])


def test_scratch_depends_on_the_seed_alone(tiny):
  def values(seed):
    return _start(tiny, tiny.model(), None, seed=seed)[1].state.trainable

  first, same, other = values(1), values(1), values(2)
  for name, value in first.items():
    np.testing.assert_array_equal(value, same[name])
  embedding = 'token_embedder/embedding'
  assert (np.asarray(first[embedding]) != other[embedding]).any()


def test_the_last_save_goes_before_the_initial_checkpoint(
    tiny, base, tmp_path):
  path, _ = base
  restore = _restore(
      path, assignment_map=LEAVE_PROMPT, fallback_to_scratch=True)
  model = tiny.model(PROMPT, prompt_length=3)
  trainer, start = _start(tiny, model, restore, tmp_path, seed=3)
  state, _ = tiny.steps(trainer, start.state, 2)
  checkpoints.Checkpointer(str(tmp_path)).save(
      state, dataclasses.replace(start.record, batches=2))

  origin = initialization.find_origin(str(tmp_path), restore, None)
  assert (origin.seed, origin.first_step, origin.step) == (3, 12, 14)
  _, again = _start(tiny, model, restore, tmp_path, seed=None)
  assert again.record.batches == 2
  for name, value in state.trainable.items():
    np.testing.assert_array_equal(again.state.trainable[name], value)
    np.testing.assert_array_equal(again.initial[name], start.initial[name])

  with pytest.raises(checkpoints.CheckpointError, match='seed 3.*is 4'):
    initialization.find_origin(str(tmp_path), restore, 4)


def test_a_run_is_not_continued_on_another_base(tiny, base, tmp_path):
  path, _ = base
  restore = _restore(
      path, assignment_map=LEAVE_PROMPT, fallback_to_scratch=True)
  model = tiny.model(PROMPT, prompt_length=3)
  _, start = _start(tiny, model, restore, tmp_path / 'run')
  checkpoints.Checkpointer(str(tmp_path / 'run')).save(
      start.state, start.record)
  _, other = tiny.start(tiny.model(), first_step=12, seed=6)
  checkpoints.Checkpointer(str(tmp_path / 'base')).save(other, RECORD)
  with pytest.raises(
      checkpoints.CheckpointError, match='INITIAL_CHECKPOINT_PATH'):
    _start(tiny, model, dataclasses.replace(
        restore, path=str(tmp_path / 'base')), tmp_path / 'run')


LAST_STEPS = [
    # total, relative, step of the last save -> last step or error
    (20, None, None, 20), (None, 5, None, 17), (20, 5, None, 17),
    (15, None, 15, 15), (None, 5, 15, 17),
    (12, None, None, 'above 12'), (11, None, None, 'is 11'),
    (14, None, 15, 'is 14'), (None, None, None, 'Neither'),
    (None, 0, None, 'TRAIN_STEPS is 12'),
]


@pytest.mark.parametrize('total,relative,saved,expected', LAST_STEPS)
def test_last_step(total, relative, saved, expected):
  save = None if saved is None else checkpoints.Save('/run')
  origin = initialization.Origin(
      seed=0, first_step=12, last_save=save, step=saved or 12)
  if isinstance(expected, int):
    assert origin.last_step(total, relative) == expected
  else:
    with pytest.raises(ValueError, match=expected):
      origin.last_step(total, relative)


def test_a_resumed_run_keeps_the_dtype_that_was_restored_to(
    tiny, base, tmp_path):
  path, _ = base
  restore = _restore(path, dtype='bfloat16')
  _, start = _start(tiny, tiny.model(), restore, tmp_path)
  checkpoints.Checkpointer(str(tmp_path)).save(start.state, start.record)
  _, again = _start(tiny, tiny.model(), restore, tmp_path)
  for name, value in start.state.trainable.items():
    assert value.dtype == jnp.bfloat16 == again.state.trainable[name].dtype
    np.testing.assert_array_equal(again.state.trainable[name], value)


def test_other_batches_are_refused(tiny, tmp_path):
  _, state = tiny.start(tiny.model(PROMPT, prompt_length=3))
  checkpoints.Checkpointer(str(tmp_path)).save(
      state, dataclasses.replace(RECORD, batch_size=32))
  origin = initialization.find_origin(str(tmp_path), None, None)
  initialization.require_same_batches(origin, 32)
  with pytest.raises(checkpoints.CheckpointError, match='32 rows.* is 64'):
    initialization.require_same_batches(origin, 64)


def test_a_specific_checkpoint_must_be_one(base, tmp_path):
  path, _ = base
  folder = path.rsplit('/', 1)[0]
  with pytest.raises(checkpoints.CheckpointError, match='checkpoint_12'):
    initialization.find_origin(
        str(tmp_path), _restore(folder, mode='specific'), 0)
  assert initialization.find_origin(
      str(tmp_path), _restore(folder, mode='latest'), 0).step == 12


def test_a_step_that_is_no_number_is_refused_unread(tmp_path):
  # Declared so large that reading it would exhaust any memory.
  leaf = {'driver': 'zarr', 'dtype': 'int32',
          'kvstore': {'driver': 'file', 'path': 'state.step/'},
          'metadata': {'shape': [2**36], 'chunks': [2**36]}}
  folder = tmp_path / 'checkpoint_1'
  (folder / 'state.step').mkdir(parents=True)
  (folder / 'state.step' / '.zarray').touch()
  (folder / 'checkpoint').write_bytes(serialization.msgpack_serialize(
      {'version': 3, 'optimizer': {'target': {}, 'state': {'step': leaf}}}))
  with pytest.raises(checkpoints.CheckpointError, match='expected one integer'):
    initialization.find_origin(
        str(tmp_path / 'run'), _restore(str(folder)), 0)


def test_remote_run_folders_are_refused():
  with pytest.raises(ValueError, match='gs://bucket/run'):
    initialization.find_origin('gs://bucket/run', None, 0)


def test_missing_parameters_are_named(tiny, base):
  path, _ = base
  model = tiny.model(PROMPT, prompt_length=3)
  with pytest.raises(
      checkpoints.CheckpointError, match='target/encoder/prompt/prompt/prompt'):
    _start(tiny, model, _restore(path))
  with pytest.raises(
      checkpoints.CheckpointError, match='fallback_to_scratch = True'):
    _start(tiny, model, _restore(path, assignment_map=LEAVE_PROMPT))
  with pytest.raises(checkpoints.CheckpointError, match=r'\[8, 16\].*\[8, 24'):
    _start(tiny, tiny.model(mlp_dim=24), _restore(path))


# Also where the run trains some of it, or all.
@pytest.mark.parametrize('trained', [
    (PROMPT,), (PROMPT, '/decoder/.*'), ()], ids=['prompt', 'decoder', 'all'])
def test_what_is_restored_is_shown_to_checks_before_a_run_begins(
    tiny, base, tmp_path, trained):
  path, values = base
  shown = []

  def check(parameters, directory):
    shown.append((sorted(parameters), directory))
    for name, value in values.items():
      np.testing.assert_array_equal(parameters[name], value)

  restore = _restore(
      path, assignment_map=LEAVE_PROMPT, fallback_to_scratch=True,
      base_checks=[check, check])
  model = tiny.model(*trained, prompt_length=3)
  _, start = _start(tiny, model, restore, tmp_path)
  assert shown == 2 * [(sorted(values), path)]
  # A resumed run has compared fingerprints, and has a prompt of its own.
  checkpoints.Checkpointer(str(tmp_path)).save(start.state, start.record)
  _start(tiny, model, restore, tmp_path)
  assert len(shown) == 2


def test_a_check_refuses_a_frozen_model(tiny, base):
  path, _ = base

  def refuse(parameters, directory):
    raise ValueError(f'not {directory}')

  restore = _restore(
      path, assignment_map=LEAVE_PROMPT, fallback_to_scratch=True,
      base_checks=[refuse])
  with pytest.raises(ValueError, match=f'not {path}'):
    _start(tiny, tiny.model(PROMPT, prompt_length=3), restore)
