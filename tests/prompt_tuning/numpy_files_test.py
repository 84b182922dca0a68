import io
import pathlib
import pickle
import re
import struct
import tracemalloc

import jax.numpy as jnp
import numpy as np
from prompt_tuning import numpy_files
import pytest

VALUES = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


def saved(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
  """What numpy itself writes."""
  stream = io.BytesIO()
  np.lib.format.write_array(stream, array, version=version)
  return stream.getvalue()


def raw(header: str, data: bytes = b'') -> bytes:
  """A numpy file of version 1.0 with any text as its header."""
  text = header.encode('latin1') + b'\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data


def declaring(shape: str, data: bytes = b'', descr: str = "'<f4'") -> bytes:
  return raw(
      f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}", data)


def as_npz() -> bytes:
  stream = io.BytesIO()
  np.savez(stream, prompt=VALUES)
  return stream.getvalue()


def with_value(value: float) -> bytes:
  damaged = VALUES.copy()
  damaged[7, 3] = value
  return saved(damaged)


@pytest.mark.parametrize('array', [
    pytest.param(VALUES, id='float32'),
    pytest.param(np.asfortranarray(VALUES), id='fortran'),
    pytest.param(VALUES.T, id='transposed'),
    pytest.param(VALUES[::3, ::2], id='strided'),
    pytest.param(VALUES[::-1, ::-1], id='reversed'),
    pytest.param(np.broadcast_to(VALUES[0], (5, 6)), id='broadcast'),
    pytest.param(VALUES.astype(np.float64) / 3, id='float64'),
    pytest.param(VALUES.astype(np.float16), id='float16'),
    pytest.param(np.arange(6, dtype=np.int32), id='int32'),
    pytest.param(np.float32(0.5), id='scalar'),
    pytest.param(jnp.asarray(VALUES), id='jax'),
    pytest.param(jnp.asarray(VALUES, jnp.bfloat16).astype(jnp.float32),
                 id='rounded to bfloat16'),
])
def test_what_is_written_is_read_by_us_and_by_numpy(tmp_path, array):
  path = tmp_path / 'encoder.prompt.prompt.prompt'
  numpy_files.write(str(path), array)
  expected = np.array(array)
  for found in (numpy_files.read(str(path)),
                np.load(path, allow_pickle=False)):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected, strict=True)


# numpy writes what it has no name for as nameless bytes, without a word.
@pytest.mark.parametrize('array', [
    pytest.param(jnp.asarray(VALUES, jnp.bfloat16), id='bfloat16'),
    pytest.param(VALUES > 0, id='bool'),
    pytest.param(VALUES + 1j, id='complex'),
    pytest.param(np.array(['positive']), id='text'),
    pytest.param(np.array([None]), id='object'),
])
def test_what_could_not_be_read_back_is_not_written(tmp_path, array):
  path = tmp_path / 'prompt'
  try:
    numpy_files.write(str(path), array)
  except numpy_files.NumpyFileError as error:
    assert str(path) in str(error)
    assert not list(tmp_path.iterdir())
  else:
    found = numpy_files.read(str(path))
    np.testing.assert_array_equal(found.astype(array.dtype), array)


@pytest.mark.parametrize('content', [
    pytest.param(saved(np.asfortranarray(VALUES)), id='fortran'),
    pytest.param(saved(VALUES, version=(2, 0)), id='long header'),
])
def test_numpys_own_layouts_are_read(tmp_path, content):
  (tmp_path / 'prompt.npy').write_bytes(content)
  np.testing.assert_array_equal(
      numpy_files.read(str(tmp_path / 'prompt.npy')), VALUES, strict=True)


GOOD = saved(VALUES)
DAMAGED = {
    'empty': b'',
    'cut in the magic': GOOD[:5],
    'cut in the header': GOOD[:60],
    'cut after the header': GOOD[:128],
    'half': GOOD[:len(GOOD) // 2],
    'a byte less': GOOD[:-1],
    'a byte more': GOOD + b'\0',
    'two files in one': GOOD + GOOD,
    'text': b'positive\nnegative\n',
    'raw pickle': pickle.dumps(VALUES),
    'pickled objects': saved(np.array([{'a': 1}, None], object)),
    'several arrays': as_npz(),
    '3.6 TiB': declaring('(1_000_000, 1_000_000)', b'\0' * 64),
    'negative shape': declaring('(-40, 6)', b'\0' * 960),
    'negative shape, right size': declaring('(-40, -6)', b'\0' * 960),
    'shape of truth values': declaring('(True,)', b'\0' * 4),
    'many axes': declaring(f'({"1, " * 100})', b'\0' * 4),
    'empty and huge': declaring(f'(0, {10**50})'),
    'structured': declaring('(1,)', b'\0' * 4, "[('a', '<f4')]"),
    'array of arrays': declaring('(1,)', b'\0' * 8, "('<f4', (2,))"),
    'text dtype': declaring('(1,)', b'\0' * 8, "'<U2'"),
    'time dtype': declaring('(1,)', b'\0' * 8, "'<M8[ns]'"),
    'truth values': declaring('(4,)', b'\0' * 4, "'|b1'"),
    'complex': declaring('(1,)', b'\0' * 8, "'<c8'"),
    'code': raw("__import__('os').mkdir('executed')"),
    'code as shape': declaring("__import__('os').mkdir('executed')"),
    'open bracket': declaring('(1,', b'\0' * 4),
    'open quote': declaring("'''(1,)", b'\0' * 4),
    'deep': raw('-' * 9000 + '1'),
    'long sum': raw('1' + '+1' * 4000),
    'long header': declaring('(1,)' + ' ' * 60_000, b'\0' * 4),
    'other byte order': saved(VALUES.astype('>f4')),
    'version 3': saved(VALUES, version=(3, 0)),
    'version 9': GOOD.replace(b'NUMPY\x01', b'NUMPY\x09'),
    'not a number': with_value(np.nan),
    'infinite': with_value(np.inf),
    'minus infinite': with_value(-np.inf),
}


@pytest.mark.parametrize('damage', DAMAGED)
def test_damage_is_one_clear_error_that_names_the_file(
    tmp_path, monkeypatch, damage):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'sst2.npy'
  path.write_bytes(DAMAGED[damage])
  with pytest.raises(
      numpy_files.NumpyFileError, match=re.escape(str(path))) as caught:
    numpy_files.read(str(path))
  assert len(str(caught.value).splitlines()) == 1
  # Nothing in the file was run.
  assert [p.name for p in tmp_path.iterdir()] == ['sst2.npy']


@pytest.mark.parametrize('name', ['missing', 'missing/prompt', '.'])
def test_a_missing_file_or_a_folder_is_named(tmp_path, name):
  path = f'{tmp_path}/{name}'
  with pytest.raises(numpy_files.NumpyFileError, match=re.escape(path)):
    numpy_files.read(path)


def test_a_flipped_bit_of_the_header_never_surprises(tmp_path):
  path = tmp_path / 'prompt'
  for place in range(8 * 128):
    content = bytearray(GOOD)
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    try:
      found = numpy_files.read(str(path))
    except numpy_files.NumpyFileError:
      continue
    np.testing.assert_array_equal(found, VALUES, strict=True)


def test_a_lying_header_allocates_nothing(tmp_path):
  path = tmp_path / 'prompt'
  # A gigabyte: little enough for an allocation to succeed.
  path.write_bytes(declaring('(1024, 1024, 256)', b'\0' * 64))
  tracemalloc.start()
  try:
    with pytest.raises(numpy_files.NumpyFileError, match='1,073,741,824'):
      numpy_files.read(str(path))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 2**20


def test_a_write_that_fails_keeps_the_old_file(tmp_path, file_size_limit):
  path = tmp_path / 'prompt'
  numpy_files.write(str(path), VALUES)
  with file_size_limit(300), pytest.raises(OSError, match='File too large'):
    numpy_files.write(str(path), 2 * VALUES)
  np.testing.assert_array_equal(numpy_files.read(str(path)), VALUES)
  numpy_files.write(str(path), 3 * VALUES)
  np.testing.assert_array_equal(numpy_files.read(str(path)), 3 * VALUES)
  assert list(tmp_path.iterdir()) == [path]


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path):
  path = tmp_path / 'prompt'
  numpy_files.write(str(path), VALUES)
  with path.open('rb', buffering=0) as reader:
    begun = reader.read(200)
    numpy_files.write(str(path), 2 * VALUES)
    assert begun + reader.read() == GOOD


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', ['float32', 'float64', 'float16'])
def test_a_value_that_is_not_finite_is_not_written(tmp_path, value, dtype):
  path = tmp_path / 'folder' / 'prompt'
  array = np.array([[1.0, value], [value, 2.0]], dtype)
  with pytest.raises(numpy_files.NumpyFileError,
                     match=f'{re.escape(str(path))}: 2 of 4'):
    numpy_files.write(str(path), array)
  assert not list(tmp_path.iterdir())


def test_folders_are_made(tmp_path):
  path = pathlib.Path(tmp_path, 'a', 'b', 'prompt')
  numpy_files.write(str(path), VALUES)
  assert list(path.parent.iterdir()) == [path]


def test_published_prompt_is_read(shared_data):
  prompt = numpy_files.read(str(shared_data / 'prompt_5x256.npy'))
  assert (prompt.shape, prompt.dtype) == ((5, 256), np.float64)
