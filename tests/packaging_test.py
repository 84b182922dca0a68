"""What is installed: gin files, the demo's data, no second t5x beside it."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def _python(folder, program, *more_paths):
  paths = [str(p) for p in (folder, *more_paths)]
  return subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True,
      cwd=folder, env=os.environ | {'PYTHONPATH': os.pathsep.join(paths)},
      check=False)


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """The wheel, unpacked where nothing of the checkout is."""
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'  # Building leaves files behind.
  shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(
      '.*', 'build', 'demo_output', '__pycache__', '*.egg-info'))
  subprocess.run(
      [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
       '--no-build-isolation', '--wheel-dir', folder, source], check=True)
  (wheel,) = folder.glob('*.whl')
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder / 'site')
  return folder / 'site'


@pytest.mark.slow
def test_the_wheel_holds_every_gin_file_and_the_demo(installed):
  for source, target in (('configs', 'prompt_tuning/configs'),
                         ('gin', 'prompt_tuning/gin'), ('t5x', 't5x')):
    for path in (ROOT / source).rglob('*.gin'):
      place = installed / target / path.relative_to(ROOT / source)
      assert place.read_bytes() == path.read_bytes()
  for path in (ROOT / 'prompt_tuning/demo/data').rglob('*'):
    if path.is_file():
      assert (installed / path.relative_to(ROOT)).exists(), path
  assert not (installed / 'tests').exists()


NAMES = ('prompts/from_file.gin', 'models/t5_1_1_base_prompt.gin',
         'models/sizes/xl.gin', 'runs/prompt_finetune.gin',
         'gin/demo/source.gin',
         'prompt_tuning/configs/prompts/from_file.gin',
         't5x/configs/runs/finetune.gin', 't5x/examples/t5/mt5/small.gin')


@pytest.mark.slow
def test_gin_files_are_found_in_an_installed_package(installed):
  done = _python(installed, (
      'import os, pathlib, sys\n'
      'os.chdir("/")\n'
      'from t5x import gin_utils\n'
      f'for name in {NAMES!r}:\n'
      '  path = gin_utils.find_config(name)\n'
      f'  assert path and path.startswith({str(installed)!r}), (name, path)\n'))
  assert done.returncode == 0, done.stderr


def test_upstream_t5x_beside_ours_is_one_clear_error(tmp_path):
  metadata = tmp_path / 't5x-0.0.0.dist-info'
  metadata.mkdir()
  (metadata / 'METADATA').write_text(
      'Metadata-Version: 2.1\nName: t5x\nVersion: 0.0.0\n')
  done = _python(tmp_path, 'import t5x', ROOT)
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith('ImportError: The distribution t5x 0.0.0 is installed')
  assert 'pip uninstall t5x' in last


def test_upstream_t5x_in_front_of_ours_is_one_clear_error(tmp_path):
  (tmp_path / 't5x').mkdir()
  (tmp_path / 't5x' / '__init__.py').write_text('')
  done = _python(tmp_path, 'import prompt_tuning', ROOT)
  assert done.returncode == 1
  assert 'is the upstream one' in done.stderr.strip().splitlines()[-1]


def test_lower_bounds_are_the_versions_that_were_tested():
  text = (ROOT / 'setup.py').read_text()
  wanted = dict(re.findall(r"'([\w-]+)(?:\[\w+\])?>=([\d.]+),", text.split(
      'EXTRAS')[0]))
  lines = (ROOT / 'tests/lower_bounds.txt').read_text().splitlines()
  pins = dict(line.split('==') for line in lines if '==' in line)
  assert wanted.keys() == pins.keys() - {'jaxlib'}
  for name, version in wanted.items():
    assert re.fullmatch(re.escape(version) + r'(\.0)*', pins[name]), name
