"""RACE and the datasets of RAINBOW for SPoT: which of several is right?

TFDS lacks SocialIQa and abductive NLI; `made_datasets` says how they are made.
"""

import functools

from prompt_tuning.data import families
from prompt_tuning.data import metrics
from prompt_tuning.spot.data import preprocessors


def _row(
    title: str,
    tag: str,
    tfds: str,
    text_keys: tuple[str, ...],
    choice_keys: tuple[str, ...],
    choices: int,
    *before: families.Preprocessor,
    train: str = 'train',
) -> families.Dataset:
  """A dataset of choices; `before` makes an example of every question."""
  labels = tuple(f'choice{number + 1}' for number in range(choices))
  splits = ({} if train == 'train' else
            {'train': train, 'validation': 'validation', 'test': 'test'})
  return families.Dataset(
      name=f'spot_{title}_{tag}',
      tfds=tfds,
      text=(*before, functools.partial(
          preprocessors.multiple_choice, text_keys=text_keys,
          choice_keys=choice_keys, task_name=title, label_names=labels)),
      title=title,
      labels=labels,
      postprocess=families.class_id(labels),
      metrics=(metrics.accuracy,),
      splits=splits or None)


DATASETS = (
    *(_row(f'race_{level}', 'v200', f'race/{level}:2.0.0',
           ('article', 'question'), ('options',), 4,
           preprocessors.race_questions) for level in ('high', 'middle')),
    _row('abductive_nli', 'v100', 'abductive_nli:1.0.0',
         ('observation1', 'observation2'), ('hypothesis1', 'hypothesis2'), 2),
    _row('cosmos_qa', 'v100', 'cosmos_qa:1.0.0', ('context', 'question'),
         ('answer0', 'answer1', 'answer2', 'answer3'), 4),
    _row('hellaswag', 'v110', 'hellaswag:1.1.0',
         ('activity_label', 'context'), ('endings',), 4),
    _row('piqa', 'v100', 'piqa:1.0.0', ('goal',), ('sol1', 'sol2'), 2),
    _row('social_i_qa', 'v100', 'social_i_qa:1.0.0', ('context', 'question'),
         ('answer1', 'answer2', 'answer3'), 3),
    # The largest of five nested training sets.
    _row('winogrande', 'v120', 'winogrande:1.2.0', ('sentence',),
         ('option1', 'option2'), 2, train='train_xl'),
)

families.register_plain(*DATASETS)
RACE = ('spot_race_high_v200', 'spot_race_middle_v200')
families.add_mixture(
    'spot_race_v200', dict.fromkeys(RACE, families.ExamplesProportional()))
