import subprocess
import sys
import types

import numpy as np
import pytest
from t5x import ready_batches


def _batches(count=3, rows=4):
  return [{'tokens': np.arange(rows * 5, dtype=np.int32).reshape(rows, 5) + i,
           'weights': np.full((rows, 2), i / 7, np.float32)}
          for i in range(count)]


def _same(found, wanted):
  assert len(found) == len(wanted)
  for ours, theirs in zip(found, wanted, strict=True):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
      assert ours[name].dtype == value.dtype
      np.testing.assert_array_equal(ours[name], value)


def _take(dataset, count):
  return [batch for batch, _ in zip(
      dataset.as_numpy_iterator(), range(count), strict=False)]


def test_batches_come_again_in_order(tmp_path):
  folder, wanted = str(tmp_path / 'a'), _batches()
  ready_batches.write(folder, iter(_batches(5)), 3)
  found = ready_batches.read(folder)
  assert found.num_batches == 3
  _same(_take(found, 7), [wanted[i % 3] for i in range(7)])
  _same(_take(found.skip(2).skip(3), 4), [wanted[i % 3] for i in range(5, 9)])
  twice = ready_batches.read(folder, num_epochs=2)
  _same(_take(twice, 99), wanted * 2)
  _same(_take(twice.skip(4), 99), wanted[1:])


def test_no_tensorflow_is_needed(tmp_path):
  folder = str(tmp_path / 'a')
  ready_batches.write(folder, _batches(), 3)
  program = (
      'import sys\n'
      "for name in ('tensorflow', 'seqio', 'gin'):\n"
      '  sys.modules[name] = None\n'
      'from t5x import ready_batches\n'
      f'batch = next(ready_batches.read({folder!r}).as_numpy_iterator())\n'
      "assert batch['tokens'].shape == (4, 5)\n")
  subprocess.run([sys.executable, '-c', program], check=True)


def test_it_takes_the_place_of_a_dataset(tmp_path):
  folder = str(tmp_path / 'a')
  ready_batches.write(folder, _batches(), 3)
  config = types.SimpleNamespace(batch_size=4)
  found = ready_batches.get_dataset(config, 0, 1, None, directory=folder)
  _same(_take(found, 3), _batches())
  config.batch_size = 8
  with pytest.raises(ValueError, match='4 rows, but BATCH_SIZE is 8'):
    ready_batches.get_dataset(config, 0, 1, None, directory=folder)


@pytest.mark.parametrize('batches,count,message', [
    (_batches(2), 3, 'only 2 batches'),
    ([*_batches(1), *_batches(1, rows=3)], 2, r'Batch 1 has tokens \[3, 5\]'),
    ([{'../tokens': np.zeros((2, 2))}], 1, r"'\.\./tokens' cannot name"),
    (_batches(), 0, 'num_batches is 0'),
])
def test_what_cannot_be_written_leaves_nothing(
    tmp_path, batches, count, message):
  with pytest.raises(ready_batches.ReadyBatchesError, match=message):
    ready_batches.write(str(tmp_path / 'a'), batches, count)
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
  folder = str(tmp_path / 'a')
  ready_batches.write(folder, _batches(), 3)
  with pytest.raises(ready_batches.ReadyBatchesError, match='there already'):
    ready_batches.write(folder, _batches(), 2)
  assert ready_batches.read(folder).num_batches == 3


@pytest.mark.parametrize('damage', [
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(path.read_bytes() + b'x'),
    lambda path: path.write_bytes(
        path.read_bytes()[:-9] + b'\x01' + path.read_bytes()[-8:]),
    lambda path: path.unlink(),
    lambda path: path.rename(path.parent / 'other.npy')])
@pytest.mark.parametrize('name', ['tokens.npy', 'manifest.json'])
def test_damage_is_named(tmp_path, damage, name):
  folder = tmp_path / 'a'
  ready_batches.write(str(folder), _batches(), 3)
  damage(folder / name)
  with pytest.raises(ready_batches.ReadyBatchesError, match=str(folder)):
    ready_batches.read(str(folder))
