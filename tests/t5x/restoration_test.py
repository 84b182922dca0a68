"""What a run takes from a checkpoint that is not its own."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x import adafactor
from t5x import checkpoints
from t5x import initialization
from t5x import lazy_arrays
from t5x import native_checkpoints
from t5x import optimizer_slots
from t5x import optimizers
from t5x import restoration

PROMPT = r'.*/prompt/.*'
FACTORED = adafactor.Adafactor(min_dim_size_to_factor=8)
KERNEL = 'encoder/layers_0/mlp/wi_0/kernel'


@pytest.fixture(scope='module')
def run(tiny):
  """A trainer, and the whole model after two of its steps, at step 14."""
  trainer, state = tiny.start(
      tiny.model(definition=FACTORED), first_step=12, seed=5)
  state, _ = tiny.steps(trainer, state, 2)
  return trainer, state


@pytest.fixture(scope='module')
def trained(run):
  return run[1]


def copied(state):
  """Steps donate what they are given."""
  return jax.tree.map(jnp.copy, state)


@pytest.fixture(scope='module')
def arrays(trained):
  """The same as the entries of a native checkpoint."""
  return native_checkpoints.of_state(trained)


def write(folder, arrays):
  return checkpoints.save_t5x_checkpoint(str(folder), arrays)


def start(tiny, model, restore, model_dir='/nowhere'):
  origin = initialization.find_origin(str(model_dir), restore, 0)
  trainer = tiny.trainer(model, first_step=origin.first_step)
  return trainer, tiny.begin(origin, trainer, restore)


def restore_of(path, **options):
  return checkpoints.RestoreCheckpointConfig(path=str(path), **options)


def slots(state):
  return {other: np.asarray(value)
          for name, value in optimizer_slots.named(state.opt_state).items()
          if (other := optimizer_slots.t5x_name(name))}


def test_a_whole_model_goes_on_with_the_optimiser_of_its_checkpoint(
    tiny, run, arrays, tmp_path):
  its_trainer, trained = run
  path = write(tmp_path, arrays)
  trainer, begun = start(
      tiny, tiny.model(definition=FACTORED), restore_of(path))
  assert int(begun.state.step) == 14
  found, wanted = slots(begun.state), slots(trained)
  assert len(wanted) == 4 * len(trained.trainable)
  for name, value in wanted.items():
    np.testing.assert_array_equal(found[name], value, name)
  # The next step is the one that the checkpoint's own run would have made.
  counters = [int(x) for name, x in optimizer_slots.named(
      begun.state.opt_state).items() if name.endswith('steps')]
  assert counters == [0]
  ours, _ = tiny.steps(trainer, begun.state, 1)
  theirs, _ = tiny.steps(its_trainer, copied(trained), 1)
  for name, value in theirs.trainable.items():
    np.testing.assert_allclose(
        ours.trainable[name], value, rtol=2e-6, atol=1e-7, err_msg=name)


def test_without_strict_the_optimiser_is_fresh(
    tiny, arrays, tmp_path):
  path = write(tmp_path, arrays)
  _, begun = start(tiny, tiny.model(definition=FACTORED),
                   restore_of(path, strict=False))
  assert not any(value.any() for value in slots(begun.state).values())


def test_our_own_save_gives_its_optimiser_too(tiny, trained, tmp_path):
  checkpoints.Checkpointer(str(tmp_path)).save(
      trained, checkpoints.RunRecord(first_step=12, seed=5))
  _, begun = start(tiny, tiny.model(definition=FACTORED), restore_of(tmp_path))
  for name, value in slots(trained).items():
    np.testing.assert_array_equal(slots(begun.state)[name], value, name)


def test_a_prompt_begins_with_a_fresh_optimiser(tiny, arrays, tmp_path):
  _, begun = start(
      tiny, tiny.model(PROMPT, prompt_length=3), restore_of(
          write(tmp_path, arrays), assignment_map=(('.*prompt.*', None),),
          fallback_to_scratch=True))
  assert not any(value.any() for value in slots(begun.state).values())


def test_a_checkpoint_without_an_optimiser_gives_a_fresh_one(
    tiny, arrays, tmp_path):
  path = write(tmp_path, {name: array for name, array in arrays.items()
                          if 'param_states' not in name})
  _, begun = start(tiny, tiny.model(definition=FACTORED), restore_of(path))
  assert not any(value.any() for value in slots(begun.state).values())


@pytest.mark.parametrize('change,match', [
    (lambda a, n: a.pop(n), 'is missing'),
    (lambda a, n: a.update({n: lazy_arrays.of_array(
        n, np.zeros((3,), np.float32))}), r'is \[3\]'),
])
def test_half_an_optimiser_is_refused(tiny, arrays, tmp_path, change, match):
  changed = dict(arrays)
  change(changed, f'state/param_states/{KERNEL}/v_row')
  path = write(tmp_path, changed)
  with pytest.raises(
      checkpoints.CheckpointError, match=f'{KERNEL}/v_row {match}.*strict'):
    start(tiny, tiny.model(definition=FACTORED), restore_of(path))


def test_the_map_takes_slots_with_their_parameter(tiny, arrays, tmp_path):
  path = write(tmp_path, arrays)
  swap = (
      (r'(.*/encoder/layers_)0(/mlp/wi_0/kernel.*)', r'\g<1>1\2'),)
  _, begun = start(tiny, tiny.model(definition=FACTORED), restore_of(
      path, assignment_map=swap))
  source = KERNEL.replace('layers_0', 'layers_1')
  np.testing.assert_array_equal(
      begun.state.trainable[KERNEL], arrays[f'target/{source}'].get())
  np.testing.assert_array_equal(
      slots(begun.state)[f'state/param_states/{KERNEL}/v_row'],
      arrays[f'state/param_states/{source}/v_row'].get())


def test_another_optimiser_begins_fresh(tiny, arrays, tmp_path):
  _, begun = start(tiny, tiny.model(definition=optimizers.sgd(0.1)),
                   restore_of(write(tmp_path, arrays)))
  assert not slots(begun.state)


def test_transformations_come_after_the_map_and_before_reading(
    tiny, arrays, tmp_path):
  path = write(tmp_path, {
      name.replace('target/token_embedder', 'target/old'): array
      for name, array in arrays.items()})
  seen = []

  def rename(state, target_state, *, is_resuming=False):
    seen.append((is_resuming, type(state['target']['half']['embedding'])))
    assert 'embedding' in target_state['target']['token_embedder']
    moved = dict(state['target'])
    moved['token_embedder'] = moved.pop('half')
    return {**state, 'target': moved}

  # The map may name any checkpoint entry only for a name of the model.
  def first(state, target_state, *, is_resuming=False):
    moved = dict(state['target'])
    moved['half'] = moved.pop('old')
    return {**state, 'target': moved}

  _, begun = start(tiny, tiny.model(), restore_of(
      path, strict=False, state_transformation_fns=(first, rename)))
  assert seen == [(False, checkpoints.LazyArray)]
  np.testing.assert_array_equal(
      begun.state.trainable['token_embedder/embedding'],
      arrays['target/token_embedder/embedding'].get())


def test_saves_are_transformed_and_restored_back(tiny, trained, tmp_path):
  def shout(state, infos):
    assert infos['target'].keys() == state['target'].keys()
    def renamed(tree):
      return {**tree, 'target': {
          key.upper(): value for key, value in tree['target'].items()}}
    return renamed(state), renamed(infos)

  def whisper(state, target_state, *, is_resuming=False):
    assert is_resuming and 'encoder' in target_state['target']
    return {**state, 'target': {
        key.lower(): value for key, value in state['target'].items()}}

  config = checkpoints.SaveCheckpointConfig(
      state_transformation_fns=[shout], keep_dataset_checkpoints=2)
  checkpoints.make_checkpointer(config, str(tmp_path)).save(
      trained, checkpoints.RunRecord(first_step=12, seed=5))
  folder = str(tmp_path / 'checkpoint_14')
  assert f'target/{KERNEL.replace("encoder", "ENCODER")}' in (
      checkpoints.open_checkpoint(folder))
  with pytest.raises(checkpoints.CheckpointError, match='other trainable'):
    checkpoints.restore_run(checkpoints.Save(folder), trained)
  again = checkpoints.restore_run(checkpoints.Save(folder), trained, [whisper])
  assert jax.tree.all(jax.tree.map(
      lambda a, b: bool((a == b).all()), again, trained))


def test_every_parameter_is_read_once(tiny, arrays):
  infos = {path: restoration.train_state_lib.ParameterInfo(
      array.shape, array.dtype, (None,) * len(array.shape), True)
           for name, array in arrays.items()
           if (path := name.removeprefix('target/')) != name}
  _, state = tiny.start(tiny.model(definition=FACTORED))
  placement = {path: state.trainable[path].sharding for path in infos}
  reads = []

  def spied(array):
    def read_slice(index):
      part = array.read_slice(index)
      reads.append((array.name, part.nbytes))
      return part

    return lazy_arrays.LazyArray(
        array.name, array.shape, array.dtype, read_slice)

  restoration.load(
      {name: spied(array) for name, array in arrays.items()}, infos, placement,
      restore_of('/nowhere'), '/nowhere', lambda paths: {})
  assert [name for name, _ in reads] == [f'target/{path}' for path in infos]
  assert all(size == arrays[name].nbytes for name, size in reads)


_MEMORY = r"""
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from t5x import checkpoints
def kibibytes(name):
  with open('/proc/self/status') as file:
    return int(re.search(name + r':\s+(\d+) kB', file.read())[1])
mesh = jax.make_mesh((2,), ('model',), axis_types=(
    jax.sharding.AxisType.Auto,))
place = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(None, 'model'))
jax.block_until_ready(jax.device_put(np.zeros((8, 8), np.float32), place))
arrays = checkpoints.open_checkpoint(sys.argv[1])
before = kibibytes('VmRSS')
placed = [jax.block_until_ready(array.put(place, jnp.float32))
          for name, array in arrays.items() if name != 'state/step']
size = sum(x.nbytes for x in placed)
print(json.dumps([size, 1024 * (kibibytes('VmHWM') - before)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_no_host_holds_the_model_besides_its_devices(tmp_path):
  # The CPU's devices keep 320 MiB in the memory that is measured; a second
  # copy of the model would double it.
  shape = (4096, 1024)
  block = np.random.default_rng(0).integers(0, 64, shape).astype(np.float32)
  arrays = {'state/step': lazy_arrays.of_array('state/step', np.int32(1))}
  for i in range(20):
    arrays[f'target/l{i}'] = lazy_arrays.LazyArray(
        f'target/l{i}', shape, block.dtype, lambda index: block[index])
  path = write(tmp_path, arrays)
  environment = os.environ | {
      'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
      'JAX_PLATFORMS': 'cpu',
      # Freed blocks go back at once, so that what is resident is in use.
      'MALLOC_MMAP_THRESHOLD_': '65536',
      'PYTHONPATH': str(pathlib.Path(__file__).parents[2])}
  output = subprocess.run(
      [sys.executable, '-c', _MEMORY, path], env=environment, check=True,
      capture_output=True, text=True).stdout
  size, peak = json.loads(output)
  assert size == 320 * 2**20
  assert size <= peak < 1.25 * size


def test_the_optimiser_of_a_published_checkpoint_is_restored(
    tiny, shared_data):
  published = checkpoints.open_checkpoint(
      checkpoints.find_checkpoint(str(shared_data / 't5x_tiny')))
  model = tiny.model(
      vocab_size=32128, emb_dim=4, head_dim=2, mlp_dim=8,
      relpos_num_buckets=4)
  _, begun = start(tiny, model, restore_of(shared_data / 't5x_tiny'))
  found = slots(begun.state)
  assert len(found) == 4 * len(begun.state.trainable)
  for name, value in found.items():
    np.testing.assert_array_equal(value, published[name].get(), name)
