import json
import re

from etils import epath
import pytest
from t5x import manifest

FILES = {'prompt': bytes(range(256)), 'd/part_0': b'\x00' * 64,
         'd/deep/metadata.json': b'{"a": 1}\n', 'd/manifest.json': b'{}'}


def flip(content, byte, bit):
  changed = bytearray(content)
  changed[byte] ^= 1 << bit
  return bytes(changed)


DAMAGES = {
    'emptied': lambda x: b'',
    'half': lambda x: x[:len(x) // 2],
    'minus one byte': lambda x: x[:-1],
    'first bit': lambda x: flip(x, 0, 0),
    'last bit': lambda x: flip(x, -1, 7),
    'deleted': lambda x: None,
    'appended': lambda x: x + b'\x00',
}


@pytest.fixture
def folder(tmp_path):
  """A folder of a few files with its manifest."""
  root = epath.Path(tmp_path)
  for name, content in FILES.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
  manifest.write(root)
  return root


def test_an_untouched_folder_is_accepted(folder):
  manifest.verify(folder)


def test_an_empty_folder_is_accepted(tmp_path):
  manifest.write(epath.Path(tmp_path))
  manifest.verify(epath.Path(tmp_path))


# Written once more after a change, the folder is in order again.
def test_the_manifest_lists_what_is_there_now(folder):
  (folder / 'prompt').write_bytes(b'other')
  (folder / 'new').write_bytes(b'')
  manifest.write(folder)
  manifest.verify(folder)
  listed = json.loads((folder / manifest.NAME).read_text())
  assert listed.keys() == FILES.keys() | {'new'}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize('name', [*FILES, manifest.NAME])
def test_every_damage_is_refused_by_the_name_of_the_file(folder, name, damage):
  content = damage((folder / name).read_bytes())
  if content is None:
    (folder / name).unlink()
  else:
    (folder / name).write_bytes(content)
  with pytest.raises(
      manifest.ManifestError, match=f'^{re.escape(str(folder / name))} '):
    manifest.verify(folder)


@pytest.mark.parametrize('name', [
    'extra', 'd/extra', '.hidden', 'new/folder/extra', 'd/prompt'])
@pytest.mark.parametrize('content', [b'', b'more'])
def test_an_extra_file_is_refused_by_name(folder, name, content):
  (folder / name).parent.mkdir(parents=True, exist_ok=True)
  (folder / name).write_bytes(content)
  with pytest.raises(
      manifest.ManifestError, match=f'{re.escape(str(folder / name))} is not'):
    manifest.verify(folder)


def test_two_files_exchanged_are_refused(folder):
  (folder / 'prompt').write_bytes(FILES['d/part_0'])
  (folder / 'd/part_0').write_bytes(FILES['prompt'])
  with pytest.raises(manifest.ManifestError, match='was changed'):
    manifest.verify(folder)


@pytest.mark.parametrize('name', FILES)
def test_a_renamed_file_is_refused(folder, name):
  (folder / name).rename(folder / 'renamed')
  with pytest.raises(manifest.ManifestError, match=re.escape(name)):
    manifest.verify(folder)


@pytest.mark.parametrize('text', [
    '[]', '1', 'null', '""', '{"prompt": 1}', '{"prompt": []}',
    '{"prompt": {"bytes": 256}}', '{"prompt"'])
def test_something_else_in_place_of_the_manifest_is_refused(folder, text):
  (folder / manifest.NAME).write_text(text)
  with pytest.raises(manifest.ManifestError, match='manifest.json is missing'):
    manifest.verify(folder)


def accepted_flips(folder):
  """Every bit of the manifest whose flip goes unnoticed, as byte offsets."""
  path = folder / manifest.NAME
  whole, accepted = path.read_bytes(), []
  for byte in range(len(whole)):
    for bit in range(8):
      path.write_bytes(flip(whole, byte, bit))
      try:
        manifest.verify(folder)
        accepted.append(byte)
      except manifest.ManifestError:
        pass
  return whole, accepted


def test_no_bit_of_the_manifest_can_flip_unnoticed(tmp_path):
  folder = epath.Path(tmp_path)
  (folder / 'prompt').write_bytes(b'values')
  manifest.write(folder)
  whole, accepted = accepted_flips(folder)
  assert {whole[max(0, i - 8):i + 1] for i in accepted} == set()


@pytest.mark.parametrize('tail', [
    b' ', b'\n',
    b'}', b'{}', b'\xff'])
def test_nothing_can_be_appended_to_the_manifest(folder, tail):
  path = folder / manifest.NAME
  path.write_bytes(path.read_bytes() + tail)
  with pytest.raises(manifest.ManifestError, match='manifest.json'):
    manifest.verify(folder)
