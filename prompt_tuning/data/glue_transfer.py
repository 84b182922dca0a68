"""From QQP to MRPC and back: train on one, evaluate on the other.

The answers of both tasks are translated to the words of the one that is
evaluated: 'not_duplicate' counts as 'not_equivalent'.
"""

import dataclasses

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families
from prompt_tuning.data import postprocessors

_ROWS = benchmarks.GLUE['v002']

for _source, _target, _translate in (
    ('qqp', 'mrpc', postprocessors.qqp_to_mrpc),
    ('mrpc', 'qqp', postprocessors.mrpc_to_qqp)):
  families.register(
      _ROWS[_source], [(variant, '') for variant in families.VARIANTS])
  _dataset = _ROWS[_target]
  families.register(
      dataclasses.replace(
          _dataset,
          name=f'glue_{_target}_from_{_source}_v002',
          postprocess=postprocessors.sequential(
              _translate, families.class_id(_dataset.labels)),
          splits={'validation': 'validation'}),
      families.ALL_KINDS)
  families.register_mixture(
      f'{{prefix}}glue_{_target}_from_{_source}_zeroshot_v002{{suffix}}',
      [f'{{prefix}}glue_{_source}_v002',
       f'{{prefix}}glue_{_target}_from_{_source}_v002{{suffix}}'],
      families.ALL_KINDS)
