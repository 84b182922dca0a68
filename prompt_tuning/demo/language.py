"""A generated, English-like language of reviews.

A text is two or three sentences about one domain (films, hotels, ...). Its
sentences carry what the tasks ask for: the writer's mood, the domain, agreement
between subject and verb, and facts that a second text can follow from or
contradict. Everything is a function of a `random.Random`.
"""

from collections.abc import Sequence
import dataclasses
import random

# Singular nouns by domain; plurals add an s.
DOMAINS = {
    'film': ('film', 'scene', 'actor', 'story', 'song', 'ending', 'cinema',
             'director'),
    'hotel': ('hotel', 'room', 'bed', 'lobby', 'pool', 'porter', 'shower',
              'balcony'),
    'book': ('book', 'chapter', 'writer', 'page', 'poem', 'cover', 'library',
             'hero'),
    'phone': ('phone', 'screen', 'battery', 'camera', 'button', 'speaker',
              'shop', 'case'),
    'car': ('car', 'engine', 'seat', 'wheel', 'driver', 'mirror', 'garage',
            'brake'),
    'school': ('school', 'teacher', 'lesson', 'desk', 'pupil', 'exam', 'yard',
               'bell'),
    'restaurant': ('restaurant', 'waiter', 'soup', 'table', 'dessert', 'cook',
                   'menu', 'kitchen'),
    'garden': ('garden', 'flower', 'path', 'fountain', 'gardener', 'bench',
               'lawn', 'gate'),
}
# What a text of a domain is about, more generally.
THEMES = {'film': 'culture', 'book': 'culture', 'hotel': 'travel',
          'car': 'travel', 'school': 'learning', 'phone': 'technology',
          'restaurant': 'food', 'garden': 'nature'}
GOOD = ('good', 'great', 'lovely', 'pleasant', 'charming', 'superb', 'nice',
        'brilliant', 'perfect', 'delightful', 'splendid', 'fine', 'wonderful',
        'elegant', 'fresh', 'bright')
BAD = ('bad', 'awful', 'ugly', 'nasty', 'boring', 'horrible', 'poor',
       'dreadful', 'broken', 'terrible', 'shabby', 'dull', 'miserable',
       'clumsy', 'stale', 'gloomy')
# Pairs of opposites, used where a text has to contradict another.
PLAIN = {'big': 'small', 'old': 'new', 'red': 'blue', 'tall': 'short',
         'open': 'closed', 'full': 'empty', 'warm': 'cold', 'long': 'brief',
         'heavy': 'light', 'clean': 'dirty', 'quick': 'slow', 'round': 'square'}
OPPOSITE = {**PLAIN, **{b: a for a, b in PLAIN.items()}}
NAMES = ('anna', 'ben', 'clara', 'david', 'emma', 'frank', 'greta', 'henry',
         'ida', 'jonas', 'karin', 'leo', 'maria', 'nora', 'oscar', 'paula',
         'robin', 'simon', 'tessa', 'victor')
LIKED = ('liked', 'loved', 'enjoyed', 'praised', 'admired', 'recommended')
DISLIKED = ('hated', 'disliked', 'regretted', 'mocked', 'avoided', 'criticised')
SAW = ('saw', 'visited', 'found', 'noticed', 'remembered', 'described')
ADVERBS = ('very', 'really', 'quite', 'rather', 'truly', 'so')
TIMES = ('yesterday', 'today', 'last week', 'in the morning', 'at night',
         'on monday', 'in spring', 'once')
NUMBERS = ('two', 'three', 'four', 'five', 'six', 'many', 'several', 'some')


@dataclasses.dataclass(frozen=True)
class Review:
  """A text and what is true of it.

  Attributes:
    text: two or three sentences, each ended by a full stop.
    domain: key of `DOMAINS`.
    positive: whether the writer liked it.
  """

  text: str
  domain: str
  positive: bool


def noun_phrase(rng: random.Random, noun: str, plural: bool) -> str:
  """`the big actor`, `three old actors`: determiner, maybe adjective, noun."""
  determiner = rng.choice(
      ('the', 'these', 'those', *NUMBERS) if plural else
      ('the', 'this', 'that', 'a', 'one'))
  words = [determiner]
  if rng.random() < 0.3:
    words.append(rng.choice(sorted(OPPOSITE)))
  return ' '.join([*words, noun + 's' if plural else noun])


def opinion(rng: random.Random, domain: str, positive: bool) -> str:
  """A sentence that shows the writer's mood."""
  noun = rng.choice(DOMAINS[domain])
  plural = rng.random() < 0.4
  # `not bad` shows a good mood: one opinion in six is negated.
  negated = rng.random() < 1 / 6
  adjective = rng.choice(GOOD if positive != negated else BAD)
  kind = rng.randrange(3)
  if kind == 0:
    verb = ('were' if plural else 'was') + (' not' if negated else '')
    return (f'{noun_phrase(rng, noun, plural)} {verb} '
            f'{rng.choice(ADVERBS)} {adjective} .')
  if kind == 1:
    verb = rng.choice(LIKED if positive else DISLIKED)
    return f'{rng.choice(NAMES)} {verb} {noun_phrase(rng, noun, plural)} .'
  verb = ('are' if plural else 'is') + (' not' if negated else '')
  return f'i think {noun_phrase(rng, noun, plural)} {verb} {adjective} .'


def fact(rng: random.Random, domain: str) -> str:
  """A sentence without any mood."""
  noun = rng.choice(DOMAINS[domain])
  plural = rng.random() < 0.4
  if rng.random() < 0.15:
    return (f'{rng.choice(NAMES)} wrote about {THEMES[domain]} '
            f'{rng.choice(TIMES)} .')
  if rng.random() < 0.5:
    return (f'{rng.choice(NAMES)} {rng.choice(SAW)} '
            f'{noun_phrase(rng, noun, plural)} {rng.choice(TIMES)} .')
  verb = ('were' if plural else 'was')
  return (f'{noun_phrase(rng, noun, plural)} {verb} '
          f'{rng.choice(sorted(OPPOSITE))} .')


def review(
    rng: random.Random,
    domain: str | None = None,
    positive: bool | None = None,
) -> Review:
  """A text about one domain, in one mood; drawn where not given."""
  domain = domain or rng.choice(sorted(DOMAINS))
  positive = rng.random() < 0.5 if positive is None else positive
  sentences = [opinion(rng, domain, positive)]
  for _ in range(rng.randrange(1, 3)):
    sentences.append(opinion(rng, domain, positive) if rng.random() < 0.4
                     else fact(rng, domain))
  rng.shuffle(sentences)
  return Review(' '.join(sentences), domain, positive)


def agreement(
    rng: random.Random, correct: bool, domains: Sequence[str] = ()) -> str:
  """A sentence whose verb does or does not agree with its subject."""
  domain = rng.choice(domains or sorted(DOMAINS))
  plural = rng.random() < 0.5
  verbs = rng.choice((('is', 'are'), ('was', 'were')))
  verb = verbs[plural == correct]
  adjective = rng.choice((*GOOD, *BAD, *sorted(OPPOSITE)))
  noun = rng.choice(DOMAINS[domain])
  start = rng.choice(('', 'i think ', f'{rng.choice(NAMES)} said '))
  return f'{start}{noun_phrase(rng, noun, plural)} {verb} {adjective} .'


def inference(
    rng: random.Random, follows: bool, domains: Sequence[str] = ()
) -> tuple[str, str]:
  """A premise and a hypothesis that follows from it or contradicts it."""
  noun = rng.choice(DOMAINS[rng.choice(domains or sorted(DOMAINS))])
  quality = rng.choice(sorted(OPPOSITE))
  said = quality if follows else OPPOSITE[quality]
  if rng.random() < 0.5:
    return f'all {noun}s were {quality} .', f'some {noun}s were {said} .'
  return (f'{rng.choice(NAMES)} {rng.choice(SAW)} the {quality} {noun} .',
          f'the {noun} was {said} .')


def comparison(
    rng: random.Random, alike: bool, domains: Sequence[str] = ()) -> str:
  """Two things described by the same word, or by opposites."""
  first = rng.choice(sorted(OPPOSITE))
  second = first if alike else OPPOSITE[first]
  things = [rng.choice(DOMAINS[rng.choice(domains or sorted(DOMAINS))])
            for _ in range(2)]
  return f'the {first} {things[0]} and the {second} {things[1]}'


def sighting(
    rng: random.Random, plural: bool, domains: Sequence[str] = ()) -> str:
  """Somebody sees one thing, or several."""
  noun = rng.choice(DOMAINS[rng.choice(domains or sorted(DOMAINS))])
  return (f'{rng.choice(NAMES)} {rng.choice(SAW)} '
          f'{noun_phrase(rng, noun, plural)} {rng.choice(TIMES)} .')
