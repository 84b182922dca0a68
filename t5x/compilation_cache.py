"""Keeps compiled programs, so that the next process starts sooner.

JAX's own persistent cache, with a place and a threshold that suit short runs.
"""

import hashlib
import logging
import os
import pathlib
import platform
import tempfile
from typing import Any

import jax


def keep_compiled_programs(folder: pathlib.Path | None = None) -> None:
  """Lets a later process load what this one compiles, where JAX allows it.

  JAX's own settings decide first: `JAX_COMPILATION_CACHE_DIR` or
  `--jax_compilation_cache_dir` for another folder,
  `JAX_ENABLE_COMPILATION_CACHE=false` for none. A folder that cannot be written
  is not used.

  Args:
    folder: where programs are kept; by default `t5x/compiled` in
      `XDG_CACHE_HOME` or `~/.cache`, and there one folder per kind of CPU, as a
      home may be shared by machines that cannot run each other's code.
  """
  settings: Any = jax.config
  if (settings.jax_compilation_cache_dir
      or not settings.jax_enable_compilation_cache):
    return
  if folder is None:
    cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    folder = pathlib.Path(cache).expanduser() / 't5x' / 'compiled' / _machine()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    logging.info('Compiled programs are not kept: %s', error)
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _machine() -> str:
  """A name for what this machine's CPU can execute."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  kind = sorted({line for line in lines
                 if line.startswith(('model name', 'flags', 'Features'))})
  digest = hashlib.sha256('\n'.join(kind).encode()).hexdigest()
  return f'{platform.machine()}-{digest[:12]}'
