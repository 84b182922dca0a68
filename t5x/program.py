"""What the command lines have in common: flags, start-up, errors."""

from collections.abc import Callable, Sequence
import os
import sys
import traceback
from typing import Any

from absl import app
from absl import flags
from absl import logging
import gin
import jax
from t5x import compilation_cache
from t5x import datasets
from t5x import gin_utils
from t5x import processes


def define_flags(values: flags.FlagValues) -> None:
  """T5X's flags, for all programs alike."""
  multi, text = flags.DEFINE_multi_string, flags.DEFINE_string
  multi('gin_file', [], 'A gin file; repeatable, later files win.',
        flag_values=values)
  multi('gin_bindings', [], 'A binding; --gin.NAME=VALUE is the same.',
        flag_values=values)
  flags.DEFINE_list('gin_search_paths', ['.'], 'Folders with gin files.',
                    flag_values=values)
  text('tfds_data_dir', None, 'Where TFDS data is.', flag_values=values)
  flags.DEFINE_list('seqio_additional_cache_dirs', [],
                    'Where offline caches of tasks are.', flag_values=values)
  flags.DEFINE_bool('dry_run', False, 'Explain the run; write nothing.',
                    flag_values=values)
  flags.DEFINE_bool('multiprocess_gpu', False,
                    'There are other processes to join.',
                    flag_values=values)
  text('coordinator_address', None, 'host:port of process 0.',
       flag_values=values)
  for name, meaning in (('process_count', 'How many processes there are.'),
                        ('process_index', 'Which one this is.'),
                        ('initialization_timeout', 'Seconds to wait.'),
                        ('shard_id', 'Overrides infer.shard_id.')):
    flags.DEFINE_integer(name, None, meaning, flag_values=values)


def execute(fn: Callable[..., Any], values: flags.FlagValues) -> Any:
  """Configures a function from parsed flags and calls it.

  Args:
    fn: `train`, `evaluate` or `infer`.
    values: parsed flags of `define_flags`.

  Returns:
    What the function returns.
  """
  processes.join(
      values.coordinator_address, values.process_count, values.process_index,
      asked=values.multiprocess_gpu, timeout=values.initialization_timeout)
  datasets.set_data_dirs(
      values.tfds_data_dir, values.seqio_additional_cache_dirs)
  bindings = list(values.gin_bindings)
  if values.dry_run:
    bindings.append(f'{fn.__name__}.dry_run = True')
  if values.shard_id is not None:
    bindings.append(f'{fn.__name__}.shard_id = {values.shard_id}')
  with (processes.failing_together(_described),
        gin_utils.main_function(fn) as configured):
    gin_utils.parse_gin_flags(
        values.gin_search_paths, values.gin_file, bindings)
    return configured()


def run_command(fn: Callable[..., Any], arguments: Sequence[str]) -> Any:
  """Runs a command line in this process, with a configuration of its own.

  Args:
    fn: `train`, `evaluate` or `infer`.
    arguments: what would follow `python -m t5x.<fn>`.

  Returns:
    What the function returns.
  """
  values = flags.FlagValues()
  define_flags(values)
  values(gin_utils.rewrite_gin_args(['program', *arguments]))
  gin.clear_config()
  try:
    return execute(fn, values)
  finally:
    gin.clear_config()


def _explained(error: BaseException) -> bool:
  """Whether an error was raised by this project, with a message for users."""
  if not isinstance(error, ValueError | FloatingPointError):
    return False
  frames = traceback.extract_tb(error.__traceback__)
  package = os.path.dirname(os.path.abspath(__file__))
  roots = (package, os.path.join(os.path.dirname(package), 'prompt_tuning'))
  return frames[-1].filename.startswith(tuple(r + os.sep for r in roots))


def _described(error: BaseException) -> tuple[int, str]:
  """The exit code of an error and what is said of it, one line if it can be."""
  if not _explained(error):
    return 1, ''.join(traceback.format_exception(error))
  # gin adds where the function was called from.
  message = str(error).split('\n  In call to configurable')[0]
  return 2, f'error: {message}'


def main(fn: Callable[..., Any]) -> None:
  """The program of `python -m`, for one function."""
  run_program(lambda: fn)


def run_program(choose: Callable[[], Callable[..., Any]]) -> None:
  """Parses the command line and runs; exits with 2 and one line on a bad input.

  Args:
    choose: called once the flags are parsed; returns `train`, `evaluate` or
      `infer`.
  """
  define_flags(flags.FLAGS)
  # Or --help would only say that there is --helpfull.
  for flag in flags.FLAGS.flags_by_module_dict()[__name__]:
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  jax.config.config_with_absl()

  def run(argv: Sequence[str]) -> None:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # Libraries are talkative.
    if len(argv) > 1:
      raise app.UsageError(f'unknown argument {argv[1]!r}; flags begin with --')
    compilation_cache.keep_compiled_programs()
    try:
      execute(choose(), flags.FLAGS)
    except (ValueError, FloatingPointError) as error:
      if not _explained(error):
        raise
      code, text = _described(error)
      sys.stderr.write(f'\n{text}\n')
      sys.exit(code)

  gin_utils.run(run)
