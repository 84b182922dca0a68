"""Runs that are killed while they save, and disks that are full."""

import json
import os
import pathlib
import signal
import subprocess
import sys

from etils import epath
import pytest
from t5x import checkpoints
from t5x import manifest

pytestmark = pytest.mark.slow

# A run of six steps that saves at each and keeps one save. It kills itself at
# the given operation on a file of its folder, counted from its start.
_RUN = r"""
import json, os, signal, sys
folder, kill_at = sys.argv[1], int(sys.argv[2])
import jax, jax.numpy as jnp, numpy as np
from t5x import checkpoints, train_state
place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
def state(step, values):
  return train_state.TrainState(
      jax.device_put(np.int32(step), place),
      {'a/b': jax.device_put(values, place)}, {}, {'v': jax.device_put(
          values * 2, place)})
begin = state(0, np.ones((64, 64), np.float32))
last = checkpoints.latest_step(folder)
now = begin
if last is not None:
  directory = checkpoints.get_checkpoint_dir(folder, last)
  save = checkpoints.Save(directory)
  save.record
  now = checkpoints.restore_run(save, begin)
seen = 0
def count(event, arguments):
  global seen
  if event in ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'open',
               'os.listdir', 'os.scandir') and any(
      isinstance(a, (str, bytes, os.PathLike)) and folder in os.fsdecode(a)
      for a in arguments):
    seen += 1
    if seen == kill_at:
      os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
saver = checkpoints.Checkpointer(folder, keep=1)
step = int(now.step)
while step < 6:
  values = np.asarray(now.trainable['a/b'])
  step += 1
  now = state(step, values * np.float32(1.5) + np.float32(step))
  saver.save(now, checkpoints.RunRecord(first_step=0, seed=0, batches=step))
print(json.dumps(seen))
"""


def _run(folder, kill_at):
  environment = os.environ | {
      'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '',
      'PYTHONPATH': str(pathlib.Path(__file__).parents[2])}
  return subprocess.run(
      [sys.executable, '-c', _RUN, str(folder), str(kill_at)],
      env=environment, capture_output=True, text=True, check=False)


def _final(folder):
  arrays = checkpoints.open_checkpoint(str(folder / 'checkpoint_6'))
  return {name: array.get().tobytes() for name, array in arrays.items()}


def test_a_run_that_is_killed_while_saving_ends_as_one_that_is_not(tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  whole.mkdir()
  killed.mkdir()
  unbroken = _run(whole, 0)
  assert unbroken.returncode == 0, unbroken.stderr
  operations = json.loads(unbroken.stdout.splitlines()[-1])
  per_save = operations // 6
  # Each process is killed a little later in its first or second save.
  points = [2 + i * (per_save * 3 // 2) // 9 for i in range(10)]
  steps = []
  for point in points:
    done = _run(killed, point)
    assert done.returncode == -signal.SIGKILL, done.stderr
    steps.append(checkpoints.latest_step(str(killed)))
    # Whatever counts as a save is whole.
    for step in checkpoints.all_steps(str(killed)):
      manifest.verify(epath.Path(killed / f'checkpoint_{step}'))
  assert sorted(steps, key=lambda step: step or 0) == steps
  assert len(set(steps)) > 1, steps
  assert _run(killed, 0).returncode == 0
  assert _final(killed) == _final(whole)
  # Nothing of the killed saves is left.
  assert [p.name for p in killed.iterdir()] == ['checkpoint_6']


_FULL = r"""
import os, resource, sys
import numpy as np
from t5x import checkpoints, lazy_arrays
folder = sys.argv[1]
def arrays(step):
  values = np.random.default_rng(step).normal(size=(64, 64))
  return {'state/step': lazy_arrays.of_array('state/step', np.int32(step)),
          'target/a': lazy_arrays.of_array(
              'target/a', values.astype(np.float32))}
checkpoints.save_t5x_checkpoint(folder, arrays(1))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
try:
  checkpoints.save_t5x_checkpoint(folder, arrays(2))
except checkpoints.CheckpointError as error:
  assert 'checkpoint_2 could not be written' in str(error), error
else:
  raise AssertionError('the save should have failed')
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
assert os.listdir(folder) == ['checkpoint_1'], os.listdir(folder)
checkpoints.save_t5x_checkpoint(folder, arrays(2))
for step in (1, 2):
  found = checkpoints.open_checkpoint(f'{folder}/checkpoint_{step}')
  assert (found['target/a'].get() == arrays(step)['target/a'].get()).all()
"""


def test_a_native_checkpoint_on_a_full_disk(tmp_path):
  # A limit on file sizes fails as a full disk does, without being root.
  environment = os.environ | {
      'PYTHONPATH': str(pathlib.Path(__file__).parents[2])}
  subprocess.run([sys.executable, '-c', _FULL, str(tmp_path)], check=True,
                 env=environment)


def test_a_removal_that_is_cut_short_leaves_no_half_save(tmp_path):
  # What is being removed is no save any more, and is swept by the next start.
  doomed = tmp_path / 'checkpoint_3.tmp-removed'
  doomed.mkdir()
  (doomed / 'record.json').write_text('{}')
  assert checkpoints.all_steps(str(tmp_path)) == []
  checkpoints.Checkpointer(str(tmp_path))
  assert not doomed.exists()
  assert not list(tmp_path.iterdir())
