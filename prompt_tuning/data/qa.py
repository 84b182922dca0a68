"""Question answering: SQuAD, the datasets of MRQA, and transfer to six."""

import functools

from prompt_tuning.data import constants
from prompt_tuning.data import families
from prompt_tuning.data import metrics
from prompt_tuning.data import postprocessors
from prompt_tuning.data import preprocessors
from prompt_tuning.data import qa_metrics
from prompt_tuning.data import text_formats

_qa = functools.partial(
    families.Dataset,
    postprocess=postprocessors.qa,
    metrics=(qa_metrics.squad,),
    example_fields=(
        constants.TARGET_TEXT, constants.CONTEXT_TEXT, constants.QUESTION_TEXT,
        constants.ANSWERS_TEXT),
    samples={'format_fn': metrics.format_qa})

# MRQA's sets of other domains are for testing only; here they validate.
OUT_OF_DOMAIN = (
    'bio_asq', 'drop', 'duo_rc', 'race', 'relation_extraction', 'textbook_qa')
IN_DOMAIN = (
    'news_qa', 'trivia_qa', 'search_qa', 'hotpot_qa', 'natural_questions')
DATASETS = (
    _qa(name='squad_v010_allanswers', tfds='squad/v1.1:3.0.0',
        text=(text_formats.squad,), title='squad'),
    *(_qa(name=f'mrqa_{title}_v100', tfds=f'mrqa/{title}:1.0.0',
          text=(preprocessors.mrqa,), title=title,
          splits={'validation': 'test'} if title in OUT_OF_DOMAIN else None)
      for title in (*OUT_OF_DOMAIN, *IN_DOMAIN)),
)
_KINDS = [(families.PLAIN, families.EXAMPLES)]

for _dataset in DATASETS:
  families.register(_dataset, _KINDS)
for _goal, _titles in (
    *((title, (title,)) for title in OUT_OF_DOMAIN), ('mrqa', OUT_OF_DOMAIN)):
  families.register_mixture(
      f'{{prefix}}squad_to_{_goal}{{suffix}}',
      ['{prefix}squad_v010_allanswers{suffix}',
       *(f'{{prefix}}mrqa_{title}_v100{{suffix}}' for title in _titles)],
      _KINDS)
