import os
import pathlib
import subprocess
import sys
import tempfile

import pytest
from t5x import compilation_cache

# Compiles one program, then says whether another process had compiled it.
PROGRAM = """
import logging, jax, jax.monitoring
from t5x import compilation_cache
compilation_cache.keep_compiled_programs()
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if 'cache_hits' in name else None)
print(float(jax.jit(lambda x: (x + 17.0) ** 3)(2.0)), len(hits) > 0)
"""


def _run(**environment) -> str:
  clean = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
  return subprocess.run(
      [sys.executable, '-W', 'error', '-c', PROGRAM], check=True, text=True,
      capture_output=True, env=clean | {'JAX_PLATFORMS': 'cpu', **environment},
      timeout=120).stdout.strip()


def _files(folder) -> list[str]:
  return [str(path.relative_to(folder)) for path in folder.rglob('*-cache')]


@pytest.mark.slow
def test_a_second_process_loads_what_the_first_compiled(tmp_path):
  assert _run(XDG_CACHE_HOME=str(tmp_path)) == '6859.0 False'
  (file, *_) = _files(tmp_path)
  assert file.startswith('t5x/compiled/')
  assert _run(XDG_CACHE_HOME=str(tmp_path)) == '6859.0 True'


@pytest.mark.slow
def test_jax_settings_decide_first(tmp_path):
  mine = tmp_path / 'mine'
  home = {'XDG_CACHE_HOME': str(tmp_path / 'home')}
  _run(JAX_COMPILATION_CACHE_DIR=str(mine), **home)
  assert _files(mine)
  _run(JAX_ENABLE_COMPILATION_CACHE='false', **home)
  assert not (tmp_path / 'home').exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path):
  file = tmp_path / 'a file'
  file.write_text('')
  assert _run(XDG_CACHE_HOME=str(file)) == '6859.0 False'


@pytest.mark.slow
def test_a_broken_entry_is_compiled_again(tmp_path):
  _run(XDG_CACHE_HOME=str(tmp_path))
  for file in _files(tmp_path):
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[:len(content) // 2])
  clean = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
  done = subprocess.run(
      [sys.executable, '-c', PROGRAM], check=True, text=True,
      capture_output=True, timeout=120,
      env=clean | {'JAX_PLATFORMS': 'cpu', 'XDG_CACHE_HOME': str(tmp_path)})
  assert done.stdout.startswith('6859.0')


def test_tests_keep_nothing():
  import jax
  folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
  assert folder.parent == pathlib.Path(tempfile.gettempdir())
  # Which is emptied after them; nothing is put elsewhere.
  compilation_cache.keep_compiled_programs()
  assert jax.config.jax_compilation_cache_dir == str(folder)
