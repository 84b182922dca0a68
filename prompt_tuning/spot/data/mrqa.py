"""The training sets of MRQA for SPoT; the text begins with their names."""

import functools

from prompt_tuning.data import families
from prompt_tuning.data import postprocessors
from prompt_tuning.data import preprocessors
from prompt_tuning.data import qa_metrics

TITLES = ('squad', 'news_qa', 'trivia_qa', 'search_qa', 'hotpot_qa',
          'natural_questions')
DATASETS = tuple(
    families.Dataset(
        name=f'spot_mrqa_{title}_v100',
        tfds=f'mrqa/{title}:1.0.0',
        text=(functools.partial(preprocessors.mrqa, task_name=title),),
        title=title,
        postprocess=postprocessors.qa,
        metrics=(qa_metrics.squad,))
    for title in TITLES)

for _dataset in DATASETS:
  families.register(_dataset, [(families.PLAIN, '')], models=[''])
