import dataclasses
import pathlib
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x import checkpoints
from t5x import train_state

PROMPT = r'.*/prompt/.*'
RECORD = checkpoints.RunRecord(
    first_step=0, seed=7, batches=3,
    base=checkpoints.BaseRecord('/base', 0, 'f' * 64),
    window={'loss': [1.25, 0.1]})


@pytest.fixture(scope='module')
def run(tiny):
  """A prompt run's trainer and state after two steps."""
  trainer, state = tiny.start(tiny.model(PROMPT, prompt_length=3))
  state, _ = tiny.steps(trainer, state, 2)
  return state


def _equal(first, second) -> bool:
  return jax.tree.all(jax.tree.map(
      lambda a, b: bool((a == b).all()) and a.sharding == b.sharding,
      first, second))


def test_a_save_is_restored_bit_for_bit_where_it_was(run, tmp_path):
  checkpoints.Checkpointer(str(tmp_path)).save(run, RECORD)
  folder = checkpoints.get_checkpoint_dir(str(tmp_path), 2)
  fresh = run.replace(
      step=run.step * 0,
      trainable=jax.tree.map(jnp.zeros_like, run.trainable),
      opt_state=jax.tree.map(jnp.zeros_like, run.opt_state))
  assert _equal(checkpoints.restore_run(checkpoints.Save(folder), fresh), run)
  assert checkpoints.Save(folder).record == RECORD


def test_a_prompt_run_saves_kilobytes(run, tmp_path):
  checkpoints.Checkpointer(str(tmp_path)).save(run, RECORD)
  size = sum(p.stat().st_size for p in tmp_path.rglob('*') if p.is_file())
  assert size < 100_000
  names = checkpoints.open_checkpoint(str(tmp_path / 'checkpoint_2'))
  assert [n for n in names if n.startswith('target/')] == [
      'target/encoder/prompt/prompt/prompt']


def test_a_model_run_saves_the_model(tiny, tmp_path):
  _, state = tiny.start(tiny.model())
  checkpoints.Checkpointer(str(tmp_path)).save(state, RECORD)
  arrays = checkpoints.open_checkpoint(str(tmp_path / 'checkpoint_0'))
  for path, value in state.trainable.items():
    np.testing.assert_array_equal(arrays[f'target/{path}'].get(), value)


def test_keep_removes_the_oldest_but_no_pinned_one(run, tmp_path):
  checkpointer = checkpoints.Checkpointer(str(tmp_path), keep=2)
  for step in (1, 2, 3, 10):
    checkpointer.save(run.replace(step=jnp.int32(step)), RECORD)
    if step == 1:
      (tmp_path / 'checkpoint_1' / 'PINNED').touch()
  assert checkpoints.all_steps(str(tmp_path)) == [1, 3, 10]
  assert checkpoints.latest_step(str(tmp_path)) == 10


@pytest.mark.parametrize('keep', [0, -1])
def test_keeping_nothing_is_refused(keep):
  with pytest.raises(ValueError, match=f'keep is {keep}'):
    checkpoints.SaveCheckpointConfig(keep=keep)


def test_a_pinned_save_is_resumed_from(run, tmp_path):
  checkpoints.Checkpointer(str(tmp_path)).save(run, RECORD)
  folder = tmp_path / 'checkpoint_2'
  (folder / 'PINNED').touch()
  save = checkpoints.Save(str(folder))
  assert save.record == RECORD
  assert _equal(checkpoints.restore_run(save, run), run)


def test_step_zero_counts_as_a_save(run, tmp_path):
  assert checkpoints.latest_step(str(tmp_path)) is None
  checkpoints.Checkpointer(str(tmp_path)).save(
      run.replace(step=jnp.int32(0)), RECORD)
  assert checkpoints.latest_step(str(tmp_path)) == 0


def test_unfinished_saves_are_not_seen_and_are_swept(run, tmp_path):
  (tmp_path / 'checkpoint_5.tmp-0' / 'state').mkdir(parents=True)
  assert checkpoints.all_steps(str(tmp_path)) == []
  checkpoints.Checkpointer(str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_saved_dtype(run, tmp_path):
  checkpoints.Checkpointer(str(tmp_path), dtype='bfloat16').save(run, RECORD)
  arrays = checkpoints.open_checkpoint(str(tmp_path / 'checkpoint_2'))
  prompt = arrays['target/encoder/prompt/prompt/prompt']
  assert prompt.dtype == np.dtype(jnp.bfloat16)
  np.testing.assert_array_equal(
      prompt.get(),
      np.asarray(run.trainable['encoder/prompt/prompt/prompt']).astype(
          jnp.bfloat16))


def _files(folder: pathlib.Path):
  return sorted(p for p in folder.rglob('*') if p.is_file())


def _truncate_to_nothing(path):
  path.write_bytes(b'')


def _truncate_to_half(path):
  path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def _drop_a_byte(path):
  path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def _append(path):
  path.write_bytes(path.read_bytes() + b'x')


@pytest.mark.parametrize('damage', [
    _truncate_to_nothing, _truncate_to_half, _drop_a_byte, _flip_a_bit,
    _append, pathlib.Path.unlink])
def test_no_damage_is_loaded_silently(run, tmp_path, damage):
  checkpoints.Checkpointer(str(tmp_path)).save(run, RECORD)
  whole = tmp_path / 'checkpoint_2'
  for file in _files(whole):
    copy = tmp_path / 'copy'
    shutil.copytree(whole, copy)
    damaged = copy / file.relative_to(whole)
    damage(damaged)
    # A changed name in the manifest is reported under the name it now has.
    named = '.' if damage is _flip_a_bit else damaged.name
    with pytest.raises(checkpoints.CheckpointError, match=named):
      checkpoints.restore_run(checkpoints.Save(str(copy)), run)
    with pytest.raises(checkpoints.CheckpointError, match=named):
      _ = checkpoints.Save(str(copy)).record
    shutil.rmtree(copy)


def test_another_runs_save_is_refused(run, tiny, tmp_path):
  checkpoints.Checkpointer(str(tmp_path)).save(run, RECORD)
  folder = str(tmp_path / 'checkpoint_2')
  _, longer = tiny.start(tiny.model(PROMPT, prompt_length=5))
  with pytest.raises(checkpoints.CheckpointError, match=r'\[3, 8\].*\[5, 8\]'):
    checkpoints.restore_run(checkpoints.Save(folder), longer)
  _, other = tiny.start(tiny.model(
      PROMPT, '.*relpos_bias.*', prompt_length=3))
  with pytest.raises(checkpoints.CheckpointError, match='PROMPT_REGEX'):
    checkpoints.restore_run(checkpoints.Save(folder), other)


_FULL_DISK = """
import resource, sys
sys.path.insert(0, {root!r})
import jax, jax.numpy as jnp, numpy as np
from t5x import checkpoints, train_state
mesh = jax.make_mesh((1,), ('data',), axis_types=(
    jax.sharding.AxisType.Auto,))
place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
def state(step):
  values = np.random.default_rng(step).normal(size=(64, 64))
  return train_state.TrainState(
      jax.device_put(jnp.int32(step), place),
      {{'a/b': jax.device_put(values.astype(np.float32), place)}}, {{}}, ())
record = checkpoints.RunRecord(first_step=0, seed=0)
saver = checkpoints.Checkpointer({folder!r})
saver.save(state(1), record)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
try:
  saver.save(state(2), record)
except checkpoints.CheckpointError as error:
  assert 'checkpoint_2' in str(error) and 'untouched' in str(error), error
else:
  raise AssertionError('the save should have failed')
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
assert checkpoints.all_steps({folder!r}) == [1]
def restored(step):
  save = checkpoints.Save({folder!r} + f'/checkpoint_{{step}}')
  return checkpoints.restore_run(save, state(0))
assert (restored(1).trainable['a/b'] == state(1).trainable['a/b']).all()
saver.save(state(3), record)
assert (restored(3).trainable['a/b'] == state(3).trainable['a/b']).all()
"""


def test_a_full_disk_leaves_the_last_save_and_the_next_one_works(tmp_path):
  # A limit on file sizes fails as a full disk does, without being root.
  assert resource.RLIMIT_FSIZE is not None
  root = str(pathlib.Path(__file__).parents[2])
  program = _FULL_DISK.format(root=root, folder=str(tmp_path))
  subprocess.run([sys.executable, '-c', program], check=True)


def test_find_checkpoint(run, tmp_path):
  checkpointer = checkpoints.Checkpointer(str(tmp_path))
  for step in (3, 20):
    checkpointer.save(run.replace(step=jnp.int32(step)), RECORD)
  last = str(tmp_path / 'checkpoint_20')
  assert checkpoints.find_checkpoint(str(tmp_path)) == last
  assert checkpoints.find_checkpoint(last) == last
  (tmp_path / 'config.json').write_text('{"lr": 1}')
  assert checkpoints.find_checkpoint(str(tmp_path)) == last
  assert checkpoints.find_checkpoint(str(tmp_path), 3).endswith('_3')
  with pytest.raises(checkpoints.CheckpointError, match=r'step 4.*\[3, 20\]'):
    checkpoints.find_checkpoint(str(tmp_path), 4)
  with pytest.raises(checkpoints.CheckpointError, match='nowhere'):
    checkpoints.find_checkpoint(str(tmp_path / 'nowhere'))


def test_record_survives_json():
  for record in (RECORD, dataclasses.replace(RECORD, base=None, window={})):
    assert checkpoints.RunRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize('make,match', [
    (lambda: checkpoints.SaveCheckpointConfig(dtype='int8'), 'int8'),
    (lambda: checkpoints.RestoreCheckpointConfig(dtype='double'), 'double'),
    (lambda: checkpoints.RestoreCheckpointConfig(mode='newest'), 'newest'),
])
def test_unknown_settings_are_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()


def test_published_checkpoint(shared_data):
  folder = str(shared_data / 't5x_tiny')
  arrays = checkpoints.open_checkpoint(checkpoints.find_checkpoint(folder))
  table = np.load(shared_data / 'tiny_embeddings_32128x4.npy')
  np.testing.assert_array_equal(
      arrays['target/token_embedder/embedding'].get(), table)
  assert arrays['state/step'].get() == 3
  paths = {n.removeprefix('target/') for n in arrays
           if n.startswith('target/')}
  assert 'encoder/layers_1/mlp/wi_0/kernel' in paths


def test_train_state_is_nested_and_flat():
  flat = {'a/b': 1, 'a/c/d': 2}
  assert train_state.flat(train_state.nested(flat)) == flat
