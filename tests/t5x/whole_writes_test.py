"""Nothing is half written and nothing overwritten."""

import os
import sys

import pytest
from t5x import whole_writes

KINDS = pytest.mark.parametrize('kind', ['file', 'folder'])


def fill(kind, opened, content):
  if kind == 'file':
    opened.write(content)
  else:
    (opened / 'inner').write_bytes(content)


def content_of(path):
  return (path / 'inner' if path.is_dir() else path).read_bytes()


@pytest.fixture
def umask():
  """`umask(mask)` until the test ends."""
  old = os.umask(0o022)
  yield os.umask
  os.umask(old)


@KINDS
@pytest.mark.parametrize('mask', [0o022, 0o077, 0o002])
def test_it_appears_at_the_end(kind, mask, tmp_path, umask):
  umask(mask)
  path = tmp_path / 'new'
  with getattr(whole_writes, kind)(path) as opened:
    fill(kind, opened, b'all')
    assert not path.exists()
  assert content_of(path) == b'all'
  assert [p.name for p in tmp_path.iterdir()] == ['new']
  every = 0o666 if kind == 'file' else 0o777
  assert path.stat().st_mode & 0o777 == every & ~mask


@KINDS
@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(kind, error, tmp_path):
  with pytest.raises(error), getattr(whole_writes, kind)(
      tmp_path / 'new') as opened:
    fill(kind, opened, b'half')
    raise error
  assert not list(tmp_path.iterdir())


@KINDS
@pytest.mark.parametrize('there', ['file', 'folder', 'empty folder', 'symlink'])
def test_what_is_there_stays(kind, there, tmp_path):
  path = tmp_path / 'taken'
  if there == 'file':
    path.write_bytes(b'old')
  elif there == 'symlink':
    path.symlink_to(tmp_path / 'nowhere')
  else:
    path.mkdir()
    if there == 'folder':
      (path / 'inner').write_bytes(b'old')
  with (pytest.raises(whole_writes.ExistsError, match='taken is there already'),
        getattr(whole_writes, kind)(path)):
    raise AssertionError('not reached')
  assert [p.name for p in tmp_path.iterdir()] == ['taken']
  if there in ('file', 'folder'):
    assert content_of(path) == b'old'


@KINDS
def test_what_came_meanwhile_stays(kind, tmp_path):
  path = tmp_path / 'new'
  with (pytest.raises(whole_writes.ExistsError),
        getattr(whole_writes, kind)(path)):
    path.mkdir()
  assert [p.name for p in tmp_path.iterdir()] == ['new']


def test_what_comes_at_the_last_moment_stays(tmp_path, monkeypatch):
  path = tmp_path / 'new'
  absent = whole_writes._absent
  asked = []

  def absent_for_the_last_time(where):
    found = absent(where)
    asked.append(where)
    if len(asked) == 2:
      path.mkdir()
      (path / 'inner').write_bytes(b'faster')
    return found

  monkeypatch.setattr(whole_writes, '_absent', absent_for_the_last_time)
  with pytest.raises(whole_writes.ExistsError), whole_writes.folder(path):
    pass
  assert content_of(path) == b'faster'
  assert [p.name for p in tmp_path.iterdir()] == ['new']


def write_when_something_comes_at_the_last_moment(path):
  """Writes a file; another writer's appears as soon as no test can see it."""
  def come(event, arguments):
    if event in ('os.link', 'os.rename') and not path.exists():
      path.write_bytes(b'faster')

  LISTENERS.append(come)
  try:
    with whole_writes.file(path) as opened:
      opened.write(b'slower')
  finally:
    LISTENERS.remove(come)


LISTENERS = []  # An audit hook cannot be taken away.
sys.addaudithook(lambda *event: [listen(*event) for listen in LISTENERS])


def test_a_file_that_comes_at_the_last_moment_stays(tmp_path):
  with pytest.raises(whole_writes.ExistsError):
    write_when_something_comes_at_the_last_moment(tmp_path / 'new')
  assert content_of(tmp_path / 'new') == b'faster'
  assert [p.name for p in tmp_path.iterdir()] == ['new']


def test_a_file_system_may_be_without_links(tmp_path, monkeypatch):
  def link(*_):
    raise PermissionError('no links')

  monkeypatch.setattr(os, 'link', link)
  path = tmp_path / 'new'
  with whole_writes.file(path) as opened:
    opened.write(b'all')
  assert content_of(path) == b'all'
  with (pytest.raises(whole_writes.ExistsError),
        whole_writes.file(tmp_path / 'other')):
    (tmp_path / 'other').write_bytes(b'old')
  assert content_of(tmp_path / 'other') == b'old'
  assert len(list(tmp_path.iterdir())) == 2
