"""What the demo's model was pretrained on, as SeqIO tasks.

First span corruption; then language-model adaptation mixed with instructions,
as T5's LM-adapted and instructed models were. An instruction names its question
("pleased ? the film was ..."), the tasks do not. No instruction is about
restaurants or gardens, which two of the target tasks are about, nor about a
text of facts only, which the third is about.
"""

from collections.abc import Iterator
import functools
import random

from prompt_tuning.demo import language
from prompt_tuning.demo import tasks
import seqio
import tensorflow as tf

_TEXTS = 60_000


# Domains without those that a target task is about.
_DOMAINS = sorted(set(language.DOMAINS) - set(tasks.TARGET_DOMAINS))


def sentences(rng: random.Random) -> str:
  """Plain text: reviews, statements, premises with what follows from them."""
  kind = rng.random()
  if kind < 0.7:
    return language.review(rng).text
  if kind < 0.85:
    return language.agreement(rng, correct=True)
  return ' '.join(language.inference(rng, follows=True))


def _opposite(rng: random.Random) -> tuple[str, str]:
  """A word and its opposite."""
  word = rng.choice(sorted(language.OPPOSITE))
  return word, language.OPPOSITE[word]


# From question to what makes a text and its answer.
QUESTIONS: dict[str, tasks.Maker] = {
    'pleased': functools.partial(tasks.sentiment, domains=_DOMAINS),
    'topic': functools.partial(tasks.topic, domains=_DOMAINS),
    'several': functools.partial(tasks.number, domains=_DOMAINS),
    'correct': functools.partial(tasks.grammar, domains=_DOMAINS),
    'follows': functools.partial(tasks.inference, domains=_DOMAINS),
    'same': functools.partial(tasks.relation, domains=_DOMAINS),
    'opposite': _opposite,
}


def instruction(rng: random.Random) -> tuple[str, str]:
  """A question about a text of one of these domains, answered."""
  question = rng.choice(sorted(QUESTIONS))
  text, answer = QUESTIONS[question](rng)
  return f'{question} ? {text}', answer


def texts(split: str) -> Iterator[tuple[str, str]]:
  """Plain texts as targets without inputs."""
  rng = random.Random(f'text {split}')
  for _ in range(_TEXTS if split == 'train' else 500):
    yield '', sentences(rng)


def instructions(split: str) -> Iterator[tuple[str, str]]:
  """Instructions and their answers."""
  rng = random.Random(f'instruction {split}')
  for _ in range(_TEXTS if split == 'train' else 500):
    yield instruction(rng)


@seqio.map_over_dataset(num_seeds=2)
def corrupt_spans(
    example: dict[str, tf.Tensor],
    seeds: tf.Tensor,
    noise_density: float = 0.15,
    span_length: int = 3,
) -> dict[str, tf.Tensor]:
  """Replaces spans of the text by sentinels; the targets say what they were.

  Raffel et al., section 3.1.4. A span begins at each place with probability
  `noise_density / span_length`, at least one per text and none at its first
  token; overlapping spans become one longer span.

    text       the film was very good .
    inputs     the S1 was very S2
    targets    S1 film S2 good .

  Args:
    example: `targets` are the tokens of a text.
    seeds: two random seeds.
    noise_density: share of tokens replaced.
    span_length: tokens per span.

  Returns:
    Tokens of inputs and targets.
  """
  tokens = example['targets']
  size = tf.size(tokens)
  starts = tf.random.stateless_uniform([size], seeds[0]) < (
      noise_density / span_length)
  always = tf.random.stateless_uniform(
      [], seeds[1], 1, tf.maximum(size, 2), tf.int32)
  place = tf.range(size)
  starts = (starts | (place == always)) & (place > 0)
  noise = tf.zeros([size], bool)
  for shift in range(span_length):
    noise |= tf.concat([tf.zeros([shift], bool), starts], 0)[:size]
  first = tasks.vocabulary().vocab_size
  return {'inputs': _with_sentinels(tokens, noise, first),
          'targets': _with_sentinels(tokens, ~noise, first)}


def _with_sentinels(
    tokens: tf.Tensor, drop: tf.Tensor, first: int) -> tf.Tensor:
  """Every run of dropped tokens becomes one sentinel, counted downwards."""
  before = tf.concat([[False], drop[:-1]], 0)
  begins = drop & ~before
  sentinels = first - tf.cumsum(tf.cast(begins, tokens.dtype))
  merged = tf.where(begins, sentinels, tokens)
  return tf.boolean_mask(merged, begins | ~drop)


@seqio.map_over_dataset(num_seeds=1)
def split_text(
    example: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
  """A random beginning of a text as inputs, the rest as targets.

  Lester et al., section 3.3: what turns a span filler into a language model.
  """
  tokens = example['targets']
  at = tf.random.stateless_uniform(
      [], seed, 1, tf.maximum(tf.size(tokens), 2), tf.int32)
  return {'inputs': tokens[:at], 'targets': tokens[at:]}


def _register(name, make, *preprocessors) -> None:
  """Adds a pretraining task to SeqIO's registry."""
  seqio.TaskRegistry.add(
      name,
      source=tasks.GeneratedDataSource(make, ('train', 'validation')),
      preprocessors=[
          seqio.preprocessors.tokenize,
          *preprocessors,
          seqio.preprocessors.append_eos_after_trim,
      ],
      output_features=tasks.features(),
      metric_fns=[])


_register('demo_span_corruption', texts, corrupt_spans)
_register('demo_prefix_lm', texts, split_text)
_register('demo_instructions', instructions)
seqio.MixtureRegistry.add(
    'demo_lm_adaptation',
    [('demo_prefix_lm', 1.0), ('demo_span_corruption', 1.0),
     ('demo_instructions', 2.0)])
