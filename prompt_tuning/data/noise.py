"""Tasks made of unlabelled tokens: a part is taken away, the model restores it.

    text_infilling   inputs  a b <X> e f <Y> i     targets  a b c d e f g h i
    token_deletion   inputs  a b e f i             targets  a b c d e f g h i
    prefix_lm        inputs  a b c                 targets  d e f g h i

The first two are like those of BART (Lewis et al., 2020, section 2.2), but for
a sentinel of its own for every span; the last is that of T5 (Raffel et al.,
2020, section 3.3). All are applied to tokens in `targets`, before the end token
is added; other fields are dropped.
"""

from collections.abc import Callable, Mapping
from typing import Any

import seqio
import tensorflow as tf

# Longer documents are cut at multiples of this, and one piece is taken.
MAX_DOCUMENT = 65536

Features = Mapping[str, seqio.Feature]
Lengths = Mapping[str, Any] | None
# From the number of tokens and two seeds [2, 2] to which are noise.
MaskFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def text_infilling(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    output_features: Features,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3,
) -> tf.data.Dataset:
  """Spans are replaced by a sentinel each; the target is the whole text.

  Args:
    ds: examples with tokens in `targets`.
    sequence_length: text is cut to that of `inputs`.
    output_features: SeqIO's features.
    noise_density: share of tokens that is taken away.
    mean_noise_span_length: tokens per span.

  Returns:
    Examples with `inputs` and `targets`.

  Raises:
    ValueError: if there are more spans than sentinels.
  """
  vocabulary = output_features['inputs'].vocabulary
  length = _segment_length(sequence_length, output_features)
  spans = round(length * noise_density / mean_noise_span_length)
  # A vocabulary that was trained with the sentinels in it names none extra.
  if spans > (vocabulary.extra_ids or 100):
    raise ValueError(
        f'text_infilling: {length} tokens make {spans} spans, but the '
        f'vocabulary has {vocabulary.extra_ids or 100} sentinels. Use shorter '
        'inputs, a lower noise_density or longer spans.')

  def convert(tokens: tf.Tensor, seeds: tf.Tensor) -> Mapping[str, tf.Tensor]:
    noise = span_mask(
        tf.size(tokens), seeds, noise_density, mean_noise_span_length)
    begins = noise & ~tf.concat([[False], noise[:-1]], axis=0)
    sentinels = vocabulary.vocab_size - tf.cumsum(
        tf.cast(begins, tokens.dtype))
    kept = begins | ~noise
    inputs = tf.boolean_mask(tf.where(begins, sentinels, tokens), kept)
    return {'inputs': inputs, 'targets': tokens}

  return _convert(_segments(ds, length), convert)


def token_deletion(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    output_features: Features,
    noise_density: float = 0.15,
) -> tf.data.Dataset:
  """Tokens are left out, each with the same chance.

  Args:
    ds: examples with tokens in `targets`.
    sequence_length: text is cut to that of `inputs`.
    output_features: SeqIO's features.
    noise_density: the chance of a token.

  Returns:
    Examples with `inputs` and `targets`, the whole text.
  """
  def convert(tokens: tf.Tensor, seeds: tf.Tensor) -> Mapping[str, tf.Tensor]:
    chance = tf.random.stateless_uniform(tf.shape(tokens), seeds[0])
    return {'inputs': tf.boolean_mask(tokens, chance >= noise_density),
            'targets': tokens}

  length = _segment_length(sequence_length, output_features)
  return _convert(_segments(ds, length), convert)


def prefix_lm(
    ds: tf.data.Dataset, sequence_length: Lengths, output_features: Features
) -> tf.data.Dataset:
  """Text is cut at a random place; the rest follows from the beginning.

  Args:
    ds: examples with tokens in `targets`.
    sequence_length: text is cut to that of `inputs`, the two parts together.
    output_features: SeqIO's features.

  Returns:
    Examples with `inputs` and `targets`, both of at least one token where the
    text has two.
  """
  def convert(tokens: tf.Tensor, seeds: tf.Tensor) -> Mapping[str, tf.Tensor]:
    last = tf.size(tokens) - 1
    place = tf.random.stateless_uniform(
        [], seeds[0], minval=tf.minimum(last, 1), maxval=last + 1,
        dtype=tf.int32)
    return {'inputs': tokens[:place], 'targets': tokens[place:]}

  length = _segment_length(sequence_length, output_features)
  return _convert(_segments(ds, length), convert)


def span_mask(
    length: tf.Tensor,
    seeds: tf.Tensor,
    noise_density: float,
    mean_noise_span_length: float,
) -> tf.Tensor:
  """Which tokens are in spans of noise; the first never is.

  The numbers of noise tokens and of spans are those expected, only the lengths
  of spans and of what is between them are random.

  Args:
    length: number of tokens.
    seeds: two seeds, `[2, 2]`.
    noise_density: share of noise.
    mean_noise_span_length: tokens per span.

  Returns:
    `[length]`; a single token is kept.
  """
  total = tf.maximum(length, 2)
  share = tf.cast(total, tf.float32) * noise_density
  noise = tf.clip_by_value(tf.cast(tf.round(share), tf.int32), 1, total - 1)
  spans = tf.cast(
      tf.round(tf.cast(noise, tf.float32) / mean_noise_span_length), tf.int32)
  spans = tf.clip_by_value(spans, 1, tf.minimum(noise, total - noise))
  lengths = tf.stack([_random_parts(total - noise, spans, seeds[0]),
                      _random_parts(noise, spans, seeds[1])], axis=1)
  is_noise = tf.tile([False, True], [spans])
  return tf.repeat(is_noise, tf.reshape(lengths, [-1]))[:length]


def _random_parts(
    total: tf.Tensor, count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Positive lengths `[count]` that add up to the total, all ways alike."""
  order = tf.argsort(tf.random.stateless_uniform([total - 1], seed))
  cuts = tf.sort(order[:count - 1]) + 1
  edges = tf.concat([[0], cuts, [total]], axis=0)
  return edges[1:] - edges[:-1]


def _segment_length(lengths: Lengths, features: Features) -> int:
  """How many tokens of text fit the inputs."""
  if not lengths or 'inputs' not in lengths:
    raise ValueError(
        'The length of inputs is not known, and text is cut to it; pass '
        "sequence_length={'inputs': ..., 'targets': ...}.")
  return lengths['inputs'] - int(features['inputs'].add_eos)


def _segments(ds: tf.data.Dataset, length: int) -> tf.data.Dataset:
  """Texts of at most this length, from one stretch of each document."""
  @seqio.map_over_dataset(num_seeds=1)
  def stretch(x: Mapping[str, tf.Tensor], seed: tf.Tensor) -> tf.Tensor:
    tokens = x['targets']
    count = -(-tf.size(tokens) // MAX_DOCUMENT)
    start = MAX_DOCUMENT * tf.random.stateless_uniform(
        [], seed, maxval=count, dtype=tf.int32)
    return tokens[start:start + MAX_DOCUMENT]

  def cut(tokens: tf.Tensor) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(tokens).batch(length)

  ds = ds.filter(lambda x: tf.size(x['targets']) > 0)
  return stretch(ds).flat_map(cut)


def _convert(
    ds: tf.data.Dataset, convert: Callable[..., Mapping[str, tf.Tensor]]
) -> tf.data.Dataset:
  """Maps tokens and two seeds `[2, 2]`."""
  @seqio.map_over_dataset(num_seeds=2)
  def apply(tokens: tf.Tensor, seeds: Any) -> Mapping[str, tf.Tensor]:
    return convert(tokens, tf.stack(seeds))

  return apply(ds)
