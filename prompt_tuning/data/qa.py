"""Question answering: SQuAD, the datasets of MRQA, and transfer to six."""

from prompt_tuning.data import benchmarks
from prompt_tuning.data import families
from prompt_tuning.data import text_formats

SQUAD = benchmarks.question_answering(
    'squad_v010_allanswers', 'squad/v1.1:3.0.0', 'squad', text_formats.squad)
_KINDS = [(families.PLAIN, families.EXAMPLES)]

families.register(SQUAD, _KINDS)
for _title, _dataset in benchmarks.MRQA.items():
  if _title != 'squad':  # In its own format above.
    families.register(_dataset, _KINDS)
for _goal, _titles in (
    *((title, (title,)) for title in benchmarks.OUT_OF_DOMAIN),
    ('mrqa', benchmarks.OUT_OF_DOMAIN)):
  families.register_mixture(
      f'{{prefix}}squad_to_{_goal}{{suffix}}',
      [f'{{prefix}}{benchmarks.MRQA[title].name}{{suffix}}'
       for title in _titles] + [f'{{prefix}}{SQUAD.name}{{suffix}}'],
      _KINDS)
