"""The demo's SeqIO tasks: sources to learn a prompt on, targets to transfer to.

Importing this registers them; the texts are generated when a split is opened.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import pathlib
import random
from typing import Any

from prompt_tuning.data import label_metrics
from prompt_tuning.data import rank_classification
from prompt_tuning.demo import language
import seqio
import tensorflow as tf

VOCABULARY_FILE = pathlib.Path(__file__).parent / 'data' / 'vocabulary.model'
EXTRA_IDS = 100

Example = tuple[str, str]
Maker = Callable[[random.Random], Example]

# Domains that no instruction of the pretraining mixture is about.
TARGET_DOMAINS = ('restaurant', 'garden')


def vocabulary() -> seqio.SentencePieceVocabulary:
  """The demo's vocabulary, with T5's hundred sentinels at its end."""
  return seqio.SentencePieceVocabulary(str(VOCABULARY_FILE), EXTRA_IDS)


@dataclasses.dataclass(frozen=True)
class DemoTask:
  """A classification task over the generated language.

  Attributes:
    name: SeqIO name.
    family: what kind of knowledge it asks for.
    labels: the words that answer it.
    make: an example from a generator.
    train_size: training examples.
    related: for a target, the source that should help.
    unrelated: for a target, a source that should help less.
  """

  name: str
  family: str
  labels: tuple[str, ...]
  make: Maker
  train_size: int = 2000
  related: str = ''
  unrelated: str = ''


# Most tasks ask for yes or no, so that labels do not give a task away.
ANSWERS = ('no', 'yes')
TOPICS = tuple(sorted(set(language.THEMES.values())))


def sentiment(rng: random.Random, domains: Sequence[str]) -> Example:
  """Whether a review shows a good mood."""
  found = language.review(rng, rng.choice(domains))
  return found.text, ANSWERS[found.positive]


def topic(
    rng: random.Random, domains: Sequence[str], facts: bool = False) -> Example:
  """What a review, or a text of facts only, is about."""
  domain = rng.choice(domains)
  text = (' '.join(language.fact(rng, domain) for _ in range(2)) if facts
          else language.review(rng, domain).text)
  return text, language.THEMES[domain]


def number(rng: random.Random, domains: Sequence[str]) -> Example:
  """Whether several things are seen, not one."""
  plural = rng.random() < 0.5
  return language.sighting(rng, plural, domains), ANSWERS[plural]


def grammar(rng: random.Random, domains: Sequence[str]) -> Example:
  """Whether subject and verb agree."""
  correct = rng.random() < 0.5
  return language.agreement(rng, correct, domains), ANSWERS[correct]


def inference(rng: random.Random, domains: Sequence[str]) -> Example:
  """Whether a hypothesis follows; if not, it is contradicted."""
  follows = rng.random() < 0.5
  premise, hypothesis = language.inference(rng, follows, domains)
  return f'premise {premise} hypothesis {hypothesis}', ANSWERS[follows]


def relation(rng: random.Random, domains: Sequence[str]) -> Example:
  """Whether two things are described by the same word, not by opposites."""
  alike = rng.random() < 0.5
  return language.comparison(rng, alike, domains), ANSWERS[alike]


def _task(
    name: str, family: str, labels: Sequence[str], make: Callable[..., Example],
    domains: Sequence[str], **options: Any,
) -> DemoTask:
  """A task about some domains."""
  return DemoTask(name, family, tuple(labels),
                  functools.partial(make, domains=domains), **options)


_ALL = tuple(sorted(language.DOMAINS))
SOURCES = (
    _task('demo_film_sentiment', 'sentiment', ANSWERS, sentiment, ['film']),
    _task('demo_hotel_sentiment', 'sentiment', ANSWERS, sentiment, ['hotel']),
    _task('demo_review_topic', 'topic', TOPICS, topic, _ALL),
    _task('demo_number', 'agreement', ANSWERS, number, _ALL),
    _task('demo_grammar', 'agreement', ANSWERS, grammar, _ALL),
    _task('demo_inference', 'entailment', ANSWERS, inference,
          ['film', 'hotel', 'book', 'phone']),
    _task('demo_relation', 'entailment', ANSWERS, relation, _ALL),
)
TARGETS = (
    _task('demo_restaurant_sentiment', 'sentiment', ANSWERS, sentiment,
          ['restaurant'], train_size=32, related='demo_film_sentiment',
          unrelated='demo_number'),
    _task('demo_fact_topic', 'topic', TOPICS,
          functools.partial(topic, facts=True), _ALL, train_size=32,
          related='demo_review_topic', unrelated='demo_inference'),
    _task('demo_garden_inference', 'entailment', ANSWERS, inference,
          ['garden'], train_size=32, related='demo_inference',
          unrelated='demo_film_sentiment'),
)
EVALUATION_SIZES = {'validation': 100, 'test': 400}


def examples(task: DemoTask, split: str) -> list[Example]:
  """The examples of a split; no text of training is in evaluation.

  Args:
    task: the task.
    split: 'train', 'validation' or 'test'.

  Returns:
    Texts and labels, labels in equal shares as far as they divide.
  """
  seen: set[str] = set()
  for name, size in (('train', task.train_size), *EVALUATION_SIZES.items()):
    rng = random.Random(f'{task.name} {name}')
    found = _balanced(rng, task, size, seen)
    if name == split:
      return found
    seen.update(text for text, _ in found)
  raise ValueError(f'{task.name} has no split {split!r}.')


def _balanced(
    rng: random.Random, task: DemoTask, size: int, avoid: set[str]
) -> list[Example]:
  """So many examples, as many of each label as the size allows.

  No text contains a word that answers the task.
  """
  room = {label: -(-size // len(task.labels)) for label in task.labels}
  found: list[Example] = []
  while len(found) < size:
    text, label = task.make(rng)
    named = set(text.split()) & set(task.labels)
    if room[label] and not named and text not in avoid:
      room[label] -= 1
      found.append((text, label))
  return found


class GeneratedDataSource(seqio.DataSource):
  """Examples that are generated in memory when a split is opened."""

  def __init__(
      self, make: Callable[[str], Iterable[Example]], splits: Sequence[str]):
    """Nothing is generated yet.

    Args:
      make: from split to pairs of inputs and targets.
      splits: names of the splits.
    """
    self._make = make
    super().__init__(splits=splits, caching_permitted=False)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """SeqIO shards the examples itself."""
    return False

  def list_shards(self, split: str) -> Sequence[str]:
    """One shard per split."""
    return [split]

  def get_dataset(
      self,
      split: str = 'train',
      shuffle: bool = True,
      seed: int | None = None,
      shard_info: seqio.ShardInfo | None = None,
      *,
      sequence_length: Mapping[str, int] | None = None,
      use_cached: bool = False,
      num_epochs: int | None = 1,
  ) -> tf.data.Dataset:
    """All examples; the task shuffles them afterwards."""
    del shuffle, seed, shard_info, sequence_length, use_cached, num_epochs
    inputs, targets = zip(*self._make(split), strict=True)
    return tf.data.Dataset.from_tensor_slices(
        {'inputs': list(inputs), 'targets': list(targets)})


def features() -> dict[str, seqio.Feature]:
  """Both features in the demo's vocabulary, ended by the end token."""
  return {name: seqio.Feature(vocabulary(), add_eos=True)
          for name in ('inputs', 'targets')}


def register(task: DemoTask) -> None:
  """Adds a task to SeqIO's registry, and `<name>_rank`, which ranks labels."""
  source = GeneratedDataSource(
      functools.partial(examples, task), ('train', *EVALUATION_SIZES))
  to_tokens = [seqio.preprocessors.tokenize,
               seqio.preprocessors.append_eos_after_trim]
  seqio.TaskRegistry.add(
      task.name,
      source=source,
      preprocessors=to_tokens,
      output_features=features(),
      metric_fns=[label_metrics.accuracy])
  seqio.TaskRegistry.add(
      f'{task.name}_rank',
      source=source,
      preprocessors=[
          functools.partial(
              rank_classification.rank_labels, labels=task.labels),
          *to_tokens],
      output_features=features(),
      postprocess_fn=rank_classification.postprocess,
      metric_fns=[rank_classification.metric(num_classes=len(task.labels))])


for _demo_task in (*SOURCES, *TARGETS):
  register(_demo_task)
