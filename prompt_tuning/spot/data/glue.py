"""GLUE for SPoT; MNLI is trained on and evaluated by tasks of its own."""

import dataclasses

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families

_ROWS = benchmarks.GLUE['v200']
_MNLI_SPLITS = {
    'train': {'train': 'train'},
    'validation_matched': {'validation': 'validation_matched'},
    'validation_mismatched': {'validation': 'validation_mismatched'},
}
MNLI = tuple(
    dataclasses.replace(
        _ROWS['mnli'], name=f'spot_glue_mnli_{part}_v200', splits=splits)
    for part, splits in _MNLI_SPLITS.items())
DATASETS = (
    *(dataclasses.replace(_ROWS[title], name=f'spot_glue_{title}_v200')
      for title in (
          'cola', 'sst2', 'mrpc', 'qqp', 'stsb', 'qnli', 'rte', 'wnli')),
    *MNLI,
)

families.register_plain(*DATASETS)
families.add_mixture(
    'spot_glue_mnli_and_dev_v200', [task.name for task in MNLI])
