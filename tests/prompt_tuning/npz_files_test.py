import io
import pickle
import re
import tracemalloc
import warnings
import zipfile

import numpy as np
from prompt_tuning import npz_files
import pytest

VALUES = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


def only(names):
  (name,) = names
  return name


def npy(array=VALUES, **options):
  stream = io.BytesIO()
  np.save(stream, array, **options)
  return stream.getvalue()


def zipped(*members, method=zipfile.ZIP_STORED):
  """A zip file of (name, content)."""
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w', method) as archive, (
      warnings.catch_warnings()):
    warnings.simplefilter('ignore', UserWarning)  # Duplicates are the point.
    for name, content in members:
      archive.writestr(name, content)
  return stream.getvalue()


def flagged_as_encrypted():
  content = bytearray(zipped(('a.npy', npy())))
  content[content.index(b'PK\x01\x02') + 8] |= 1
  return bytes(content)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('array', [
    VALUES, VALUES.astype(np.float64) / 3, np.asfortranarray(VALUES),
    np.zeros((100, 768), np.float32)],
    ids=['float32', 'float64', 'fortran', 'constant'])
def test_what_numpy_writes_is_read(tmp_path, save, array):
  path = tmp_path / 'prompts.npz'
  save(path, first=VALUES + 1, prompt=array)
  found = npz_files.read(str(path), lambda names: names[1])
  np.testing.assert_array_equal(found, array, strict=True)


def test_names_are_those_of_the_arrays(tmp_path):
  path = tmp_path / 'prompts.npz'
  np.savez(path, VALUES, prompt=VALUES)
  seen = []
  npz_files.read(str(path), lambda names: seen.extend(names) or names[0])
  assert seen == ['prompt', 'arr_0']


GOOD = zipped(('prompt.npy', npy()))
DAMAGED = {
    'empty': b'',
    'text': b'positive',
    'a numpy file': npy(),
    'raw pickle': pickle.dumps(VALUES),
    'half': GOOD[:len(GOOD) // 2],
    'cut at the end': GOOD[:-30],
    'a flipped bit of a value': GOOD.replace(
        VALUES.tobytes()[:8], VALUES.tobytes()[:7] + b'\x01'),
    'a pickled member': zipped(('a.npy', pickle.dumps(VALUES))),
    'objects': zipped(('a.npy', npy(np.array([{}, None], object)))),
    'two of a name': zipped(('a.npy', npy()), ('a.npy', npy(2 * VALUES))),
    'no array': zipped(('a.npy', npy()), ('a.pkl', pickle.dumps(VALUES))),
    'a bomb': zipped(('a.npy', npy(np.zeros((1024, 4096), np.float32))),
                     method=zipfile.ZIP_DEFLATED),
    'a lying header': zipped(('a.npy', npy()[:128] + b'\0' * 8)),
    'encrypted': flagged_as_encrypted(),
    'packed otherwise': zipped(('a.npy', npy()), method=zipfile.ZIP_LZMA),
    'not a number': zipped(('a.npy', npy(VALUES * np.nan))),
    'too many members': zipped(
        *((f'{i}.npy', b'') for i in range(10_001))),
}


@pytest.mark.parametrize('damage', DAMAGED)
def test_damage_is_one_clear_error_that_names_the_file(tmp_path, damage):
  path = tmp_path / 'prompts.npz'
  path.write_bytes(DAMAGED[damage])
  assert damage not in ('empty', 'text') or not zipfile.is_zipfile(path)
  with pytest.raises(
      npz_files.NumpyFileError, match=re.escape(str(path))) as caught:
    npz_files.read(str(path), only)
  assert len(str(caught.value).splitlines()) == 1
  assert [p.name for p in tmp_path.iterdir()] == ['prompts.npz']


def test_a_path_in_a_name_leads_nowhere(tmp_path):
  path = tmp_path / 'in' / 'prompts.npz'
  path.parent.mkdir()
  path.write_bytes(zipped(('../../out.npy', npy())))
  found = npz_files.read(str(path), only)
  np.testing.assert_array_equal(found, VALUES)
  assert [p.name for p in tmp_path.rglob('*')] == ['in', 'prompts.npz']


def test_a_bomb_is_not_unpacked(tmp_path):
  path = tmp_path / 'prompts.npz'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive, (
      archive.open('a.npy', 'w')) as member:
    member.write(npy(np.zeros((65536, 256), np.float32)))  # 64 MiB.
  tracemalloc.start()
  try:
    with pytest.raises(npz_files.NumpyFileError, match='67,108,992 bytes'):
      npz_files.read(str(path), only)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 2**20


def test_a_flipped_bit_never_surprises(tmp_path):
  path = tmp_path / 'prompts.npz'
  content = zipped(('prompt.npy', npy(VALUES[:1])))
  for place in range(len(content)):
    damaged = bytearray(content)
    damaged[place] ^= 1 << place % 8
    path.write_bytes(damaged)
    try:
      found = npz_files.read(str(path), only)
    except npz_files.NumpyFileError:
      continue
    np.testing.assert_array_equal(found, VALUES[:1], strict=True)


@pytest.mark.parametrize('name', ['missing.npz', '.'])
def test_a_missing_file_or_a_folder_is_named(tmp_path, name):
  with pytest.raises(npz_files.NumpyFileError, match=re.escape(str(tmp_path))):
    npz_files.read(f'{tmp_path}/{name}', only)
