import os
import signal

from prompt_tuning import npz_files
from prompt_tuning import numpy_files
import pytest
from t5x import hugging_face_config
from t5x import safetensors_files
from t5x import untrusted_files


@pytest.fixture
def folder(tmp_path):
  """A folder with a file in it and one beside it."""
  made = tmp_path / 'folder'
  made.mkdir()
  (made / 'a.json').write_text('{"a": 1}')
  (tmp_path / 'secret').write_text('{}')
  return made


@pytest.mark.parametrize('name', [
    '../secret', '/etc/passwd', '..', '.', '', 'a/../../secret', 'sub/file',
    '..\\secret', 'a\0b'])
def test_a_name_cannot_leave_its_folder(folder, name):
  with pytest.raises(untrusted_files.UntrustedFileError, match='name of a fil'):
    untrusted_files.inside(folder, name)


def test_a_symlink_cannot_leave_its_folder(folder):
  (folder / 'out').symlink_to(folder.parent / 'secret')
  (folder / 'in').symlink_to('a.json')
  with pytest.raises(untrusted_files.UntrustedFileError, match='not followed'):
    untrusted_files.inside(folder, 'out')
  assert untrusted_files.inside(folder, 'in').read_text() == '{"a": 1}'
  assert not untrusted_files.inside(folder, 'absent').exists()


@pytest.mark.parametrize('target,allowed', [
    ('../../blobs/x', True), ('../../../blobs/ab/x', True),
    ('../../refs/x', False), ('../../../../secret', False)])
def test_a_snapshot_of_the_hub_may_point_to_blobs_only(
    tmp_path, target, allowed):
  snapshot = tmp_path / 'hub' / 'models--a--b' / 'snapshots' / 'c0'
  snapshot.mkdir(parents=True)
  (snapshot / 'x').symlink_to(target)
  if allowed:
    untrusted_files.inside(snapshot, 'x')
  else:
    with pytest.raises(untrusted_files.UntrustedFileError):
      untrusted_files.inside(snapshot, 'x')


def test_other_folders_may_not_point_to_blobs(tmp_path):
  folder = tmp_path / 'models--a--b' / 'copies' / 'c0'
  folder.mkdir(parents=True)
  (folder / 'x').symlink_to('../../blobs/x')
  with pytest.raises(untrusted_files.UntrustedFileError):
    untrusted_files.inside(folder, 'x')


@pytest.mark.parametrize('content,says', [
    (b'{"a": 1', 'delimiter'), (b'[1]', 'JSON list'), (b'{"a":1,"a":1}', "'a'"),
    (b'{"x":{"a":1,"a":2}}', "'a'"), (b'{"a": NaN}', 'NaN'),
    (b'{"a": -Infinity}', 'Infinity'), (b'\xff{}', 'utf-8'),
    (b'{"a": -1e999}', '-1e999 is too large'),
    (b'[' * 100_000, 'recursion'), (b'{"a":' + b'9' * 9999 + b'}', 'digits'),
    (b'', 'value')])
def test_json_that_is_not_plain_is_refused(folder, content, says):
  (folder / 'a.json').write_bytes(content)
  with pytest.raises(untrusted_files.UntrustedFileError, match=says) as error:
    untrusted_files.read_json(folder / 'a.json')
  assert 'a.json' in str(error.value)


def test_json_is_measured_before_it_is_read(folder):
  os.truncate(folder / 'a.json', untrusted_files.LARGEST_JSON + 1)
  with pytest.raises(untrusted_files.UntrustedFileError, match='bytes'):
    untrusted_files.read_json(folder / 'a.json')


@pytest.fixture
def no_waiting():
  """Fails a test that waits for a pipe, or takes as long as if it did."""

  def fail(*_):
    raise AssertionError('waits')

  old = signal.signal(signal.SIGALRM, fail)
  signal.alarm(5)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, old)


READERS = {
    'a.json': untrusted_files.read_json,
    'config.json': lambda path: hugging_face_config.read_json(path.parent),
    'a.safetensors': safetensors_files.read,
    'a.npy': numpy_files.read,
    'a.npz': lambda path: npz_files.read(path, min),
}


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('kind', ['pipe', 'device', 'link'])
def test_only_regular_files_are_opened(tmp_path, name, kind, no_waiting):
  path = tmp_path / name
  if kind == 'device' and name != 'config.json':
    path.symlink_to('/dev/null')
  elif kind == 'link':
    os.mkfifo(tmp_path / 'pipe')
    path.symlink_to('pipe')
  else:
    os.mkfifo(path)
  with pytest.raises(ValueError, match='not a regular file') as error:
    READERS[name](path)
  assert name in str(error.value)


def test_a_key_that_stands_there_twice_is_found_in_one_pass(no_waiting):
  keys = [*range(100_000), 99_999]
  with pytest.raises(untrusted_files.UntrustedFileError, match="'99999'"):
    untrusted_files.parse_json(
        ('{' + ','.join(f'"{key}":1' for key in keys) + '}').encode(), 'it')


def test_json_that_is_not_there_is_named(folder):
  with pytest.raises(untrusted_files.UntrustedFileError, match=r'b\.json'):
    untrusted_files.read_json(folder / 'b.json')
  (folder / 'a.json').write_text('{"a": [1, {"b": null}]}')
  assert untrusted_files.read_json(folder / 'a.json') == {'a': [1, {'b': None}]}
