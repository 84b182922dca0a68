"""GLUE: the tasks of each dataset, and MNLI with its evaluation sets."""

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families

for _tag, _rows in benchmarks.GLUE.items():
  for _dataset in _rows.values():
    families.register(_dataset)
  # MNLI's own validation sets are called matched and mismatched.
  families.register_mixture(
      f'{{prefix}}glue_mnli_and_dev_{_tag}{{suffix}}',
      [f'{{prefix}}glue_{name}_{_tag}{{suffix}}'
       for name in ('mnli', 'mnli_matched', 'mnli_mismatched')],
      families.SAMPLED_KINDS)
