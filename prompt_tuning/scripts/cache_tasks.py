"""Writes tokenised examples of tasks once, so that training never tokenises.

    python -m prompt_tuning.scripts.cache_tasks \
      --module_import=prompt_tuning.data.glue --tfds_data_dir=/tfds \
      --tasks=taskless_glue_sst2_v200_examples --output_cache_dir=/caches

Names are those of SeqIO's own tool, which needs Apache Beam; this one runs in
one process. A run reads the cache with `--seqio_additional_cache_dirs=/caches
--gin.USE_CACHED_TASKS=True`.
"""

import argparse
from collections.abc import Sequence
import sys

from prompt_tuning.data import offline_cache
import seqio
from t5x import datasets
from t5x.scripts import command


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('prompt_tuning.scripts.cache_tasks', __doc__)
  add = parser.add_argument
  add('--module_import', action='append', default=[],
      help='A module that registers tasks; may be repeated.')
  add('--tasks', required=True, help='Tasks and mixtures, with commas.')
  add('--output_cache_dir', required=True, help='Where the cache goes.')
  add('--splits', help='With commas; by default all.')
  add('--num_shards', type=int, default=4, help='Files per split.')
  add('--tfds_data_dir', help='Where TFDS data are.')
  add('--base_seed', type=int, default=0,
      help='Of preprocessors that draw.')
  return command.run(parser, _cache, arguments)


def _cache(flags: argparse.Namespace) -> None:
  """Does what the flags ask for."""
  datasets.set_data_dirs(flags.tfds_data_dir)
  for module in flags.module_import:
    datasets.import_module(module)
  tasks = {task.name: task for name in flags.tasks.split(',')
           for task in seqio.get_subtasks(datasets.provider_of(name))}
  for task in tasks.values():
    command.say(offline_cache.write(
        task, flags.output_cache_dir,
        splits=flags.splits.split(',') if flags.splits else None,
        num_shards=flags.num_shards, seed=flags.base_seed))


if __name__ == '__main__':
  sys.exit(main())
