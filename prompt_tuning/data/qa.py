"""Question answering: SQuAD, the datasets of MRQA, and transfer to six."""

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families

_KINDS = [(families.PLAIN, families.EXAMPLES)]

families.register(benchmarks.SQUAD, _KINDS)
for _title, _dataset in benchmarks.MRQA.items():
  if _title != 'squad':  # In its own format above.
    families.register(_dataset, _KINDS)
for _goal, _titles in (
    *((title, (title,)) for title in benchmarks.OUT_OF_DOMAIN),
    ('mrqa', benchmarks.OUT_OF_DOMAIN)):
  families.register_mixture(
      f'{{prefix}}squad_to_{_goal}{{suffix}}',
      [f'{{prefix}}{benchmarks.MRQA[title].name}{{suffix}}'
       for title in _titles] + [f'{{prefix}}{benchmarks.SQUAD.name}{{suffix}}'],
      _KINDS)
