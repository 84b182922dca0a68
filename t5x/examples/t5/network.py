"""T5 as one encoder and one decoder over a shared embedding table."""

from collections.abc import Callable
import math

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from t5x.examples.t5 import attention
from t5x.examples.t5 import config as config_lib
from t5x.examples.t5 import layers
from t5x.examples.t5 import sequence as sequence_lib

Sequence = sequence_lib.Sequence
BlockConfig = config_lib.BlockConfig
T5Config = config_lib.T5Config


class Encoder(nn.Module):
  """Tokens to an encoded `Sequence`.

  A subclass that changes what the blocks see overrides `embed`.
  """

  config: T5Config
  shared_embedding: nn.Module

  def setup(self):
    cfg = self.config
    self.relpos_bias = attention.RelativePositionBiases(
        cfg, bidirectional=True)
    if cfg.scan_layers:
      self.encoder = layers.scanned(
          layers.EncoderLayer, cfg, cfg.num_encoder_layers)
    else:
      self.layers = layers.unrolled(
          layers.EncoderLayer, cfg, cfg.num_encoder_layers)
    self.encoder_norm = layers.LayerNorm(cfg)
    self.input_dropout = layers.dropout(cfg)
    self.output_dropout = nn.Dropout(cfg.dropout_rate)

  def embed(
      self,
      tokens: Int[Array, 'B T'],
      positions: Int[Array, 'B T'] | None,
      segments: Int[Array, 'B T'] | None,
  ) -> Sequence:
    """The sequence that the blocks will see; token 0 is padding."""
    return Sequence.create(
        self.shared_embedding(tokens), tokens > 0, positions, segments)

  def __call__(
      self,
      tokens: Int[Array, 'B T'],
      positions: Int[Array, 'B T'] | None = None,
      segments: Int[Array, 'B T'] | None = None,
      *,
      deterministic: bool,
  ) -> Sequence:
    """Encodes.

    Args:
      tokens: token ids, 0 is padding.
      positions: places for relative attention; None counts from zero.
      segments: packed examples, from 1; None when a row is one example.
      deterministic: no dropout.

    Returns:
      The encoded sequence; longer than `tokens` if `embed` made it so.
    """
    sequence = self.embed(tokens, positions, segments)
    context = layers.BlockContext(
        mask=sequence.visible_from(sequence),
        bias=self.relpos_bias(sequence.positions, sequence.positions))
    x = self.input_dropout(sequence.x, deterministic)
    for layer in [self.encoder] if self.config.scan_layers else self.layers:
      x, _ = layer(x, context, deterministic)
    x = self.output_dropout(self.encoder_norm(x), deterministic)
    return sequence.replace(x=x)


class Decoder(nn.Module):
  """A `Sequence` of target tokens, and an encoded one if any, to logits.

  A subclass that changes what the blocks see overrides `embed`.

  Attributes:
    config: sizes and choices.
    shared_embedding: the embedding table; None makes one for this decoder.
  """

  config: BlockConfig
  shared_embedding: nn.Module | None = None

  def setup(self):
    cfg = self.config
    self.token_embedder = self.shared_embedding or layers.embedder(cfg)
    self.relpos_bias = attention.RelativePositionBiases(
        cfg, bidirectional=False)
    if cfg.scan_layers:
      self.decoder = layers.scanned(
          layers.DecoderLayer, cfg, cfg.decoder_layers)
    else:
      self.layers = layers.unrolled(
          layers.DecoderLayer, cfg, cfg.decoder_layers)
    self.decoder_norm = layers.LayerNorm(cfg)
    self.dropout = layers.dropout(cfg)
    if not cfg.logits_via_embedding:
      self.logits_dense = attention.dense(
          cfg, cfg.vocab_size, ('embed', 'vocab'), dtype=cfg.logits_dtype)

  def __call__(
      self,
      encoded: Sequence | None,
      target: Sequence,
      *,
      deterministic: bool,
      max_decode_length: int | None = None,
  ) -> Float[Array, 'B S V']:
    """Decodes.

    Args:
      encoded: what the encoder returned; None if there is none.
      target: the embedded tokens to decode; in cached decoding only the newest,
        at their positions.
      deterministic: no dropout.
      max_decode_length: None, or the length of the decoding cache.

    Returns:
      Scores of the next token after every token.
    """
    keys = target
    if max_decode_length is not None:
      keys = target.in_cache(max_decode_length)
    context = layers.BlockContext(
        mask=keys.visible_from(target) & keys.causal_from(target),
        bias=self.relpos_bias(target.positions, keys.positions),
        position=None if max_decode_length is None else target.positions[:, 0],
        encoded=encoded,
        encoded_mask=None if encoded is None else encoded.visible_from(target))
    x = self.dropout(target.x, deterministic)
    for layer in [self.decoder] if self.config.scan_layers else self.layers:
      x, _ = layer(x, context, deterministic)
    x = self.decoder_norm(x[:, target.first_token:])
    return self.logits(self.dropout(x, deterministic))

  def embed(
      self,
      tokens: Int[Array, 'B S'],
      targets: Int[Array, 'B S'] | None = None,
      positions: Int[Array, '#B S'] | None = None,
      segments: Int[Array, 'B S'] | None = None,
      prefix: Int[Array, 'B S'] | None = None,
  ) -> Sequence:
    """The sequence that the blocks will see; a place with target 0 is padding.

    Args:
      tokens: token ids.
      targets: what is to be predicted at each place; None in cached decoding,
        where `tokens` are the newest and all of them valid.
      positions: places for relative attention; None counts from zero.
      segments: packed examples, from 1; None when a row is one example.
      prefix: above zero at places that see each other; None for none.

    Returns:
      The embedded sequence.
    """
    valid = jnp.ones(tokens.shape, bool) if targets is None else targets > 0
    return Sequence.create(
        self.token_embedder(tokens), valid, positions, segments,
        None if prefix is None else prefix > 0)

  def logits(self, x: Float[Array, 'B S H']) -> Float[Array, 'B S V']:
    """Scores over the vocabulary, in `logits_dtype`."""
    cfg = self.config
    if not cfg.logits_via_embedding:
      return self.logits_dense(x)
    x = x.astype(cfg.logits_dtype) / math.sqrt(cfg.emb_dim)
    return x @ self.token_embedder.embedding.astype(cfg.logits_dtype).T


class Transformer(nn.Module):
  """An encoder-decoder with a shared embedding table.

  Attributes:
    config: sizes and choices.
    encoder_factory: called with `config` and `shared_embedding`.
    decoder_factory: called with `config` and `shared_embedding`.
  """

  config: T5Config
  encoder_factory: Callable[..., nn.Module] = Encoder
  decoder_factory: Callable[..., nn.Module] = Decoder

  def setup(self):
    cfg = self.config
    self.token_embedder = layers.embedder(cfg)
    self.encoder = self.encoder_factory(
        config=cfg, shared_embedding=self.token_embedder)
    self.decoder = self.decoder_factory(
        config=cfg, shared_embedding=self.token_embedder)

  def encode(
      self,
      encoder_input_tokens: Int[Array, 'B T'],
      encoder_segment_ids: Int[Array, 'B T'] | None = None,
      encoder_positions: Int[Array, 'B T'] | None = None,
      *,
      enable_dropout: bool = True,
  ) -> Sequence:
    """See `Encoder`."""
    return self.encoder(
        encoder_input_tokens, encoder_positions, encoder_segment_ids,
        deterministic=not enable_dropout)

  def decode(
      self,
      encoded: Sequence,
      decoder_input_tokens: Int[Array, 'B S'],
      decoder_target_tokens: Int[Array, 'B S'] | None = None,
      decoder_segment_ids: Int[Array, 'B S'] | None = None,
      decoder_positions: Int[Array, '#B S'] | None = None,
      *,
      enable_dropout: bool = True,
      max_decode_length: int | None = None,
  ) -> Float[Array, 'B S V']:
    """See `Decoder`; with `max_decode_length` it reads and fills a cache."""
    target = self.decoder.embed(
        decoder_input_tokens, decoder_target_tokens, decoder_positions,
        decoder_segment_ids)
    return self.decoder(
        encoded, target, deterministic=not enable_dropout,
        max_decode_length=max_decode_length)

  def __call__(
      self,
      encoder_input_tokens: Int[Array, 'B T'],
      decoder_input_tokens: Int[Array, 'B S'],
      decoder_target_tokens: Int[Array, 'B S'],
      encoder_segment_ids: Int[Array, 'B T'] | None = None,
      decoder_segment_ids: Int[Array, 'B S'] | None = None,
      encoder_positions: Int[Array, 'B T'] | None = None,
      decoder_positions: Int[Array, 'B S'] | None = None,
      *,
      enable_dropout: bool = True,
  ) -> Float[Array, 'B S V']:
    """Scores of every target token given the ones before it.

    Args:
      encoder_input_tokens: input ids, 0 is padding.
      decoder_input_tokens: target ids shifted right, beginning with 0.
      decoder_target_tokens: target ids, 0 is padding.
      encoder_segment_ids: packed examples of the input, from 1.
      decoder_segment_ids: packed examples of the target, from 1.
      encoder_positions: places of the input within its example.
      decoder_positions: places of the target within its example.
      enable_dropout: train with dropout.

    Returns:
      Logits in `config.logits_dtype`.
    """
    encoded = self.encode(
        encoder_input_tokens, encoder_segment_ids, encoder_positions,
        enable_dropout=enable_dropout)
    return self.decode(
        encoded, decoder_input_tokens, decoder_target_tokens,
        decoder_segment_ids, decoder_positions, enable_dropout=enable_dropout)
