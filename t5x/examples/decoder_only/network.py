"""T5's decoder without an encoder: a causal or a prefix language model."""

from collections.abc import Callable
import dataclasses

from flax import linen as nn
from jaxtyping import Array, Float, Int
from t5x.examples.t5 import config as config_lib
from t5x.examples.t5 import network

Decoder = network.Decoder


@dataclasses.dataclass(frozen=True)
class TransformerConfig(config_lib.BlockConfig):
  """Hyperparameters of a stack of blocks, with T5X's names.

  Attributes:
    num_layers: blocks.
  """

  num_layers: int = 6

  @property
  def decoder_layers(self) -> int:
    """Blocks of the decoder, which is all there is."""
    return self.num_layers


class DecoderWrapper(nn.Module):
  """A language model, its parameters and its embedding table in `decoder/`.

  Attributes:
    config: sizes and choices.
    decoder_factory: called with `config`; makes its own embedding table.
  """

  config: TransformerConfig
  decoder_factory: Callable[..., nn.Module] = Decoder

  def setup(self):
    self.decoder = self.decoder_factory(config=self.config)

  def __call__(
      self,
      decoder_input_tokens: Int[Array, 'B S'],
      decoder_target_tokens: Int[Array, 'B S'] | None = None,
      decoder_segment_ids: Int[Array, 'B S'] | None = None,
      decoder_positions: Int[Array, '#B S'] | None = None,
      decoder_causal_attention: Int[Array, 'B S'] | None = None,
      *,
      enable_dropout: bool = True,
      max_decode_length: int | None = None,
  ) -> Float[Array, 'B S V']:
    """Scores of every target token given the ones before it.

    With `max_decode_length` there is a cache. It is filled from the start of
    the rows when there are targets, and without them one token at a time, at
    `decoder_positions`, which may differ from row to row:

        fill      0 a b . . .    targets 1 1 1 0 0 0
        step            b        at position 2
        step              x      at position 3

    Args:
      decoder_input_tokens: ids shifted right, beginning with 0.
      decoder_target_tokens: ids to be predicted, 0 is padding; None in cached
        decoding, token by token.
      decoder_segment_ids: packed examples, from 1.
      decoder_positions: places within the example.
      decoder_causal_attention: above zero at the places of the prefix, which
        see each other; None for causal attention alone.
      enable_dropout: train with dropout.
      max_decode_length: None, or the length of the decoding cache.

    Returns:
      Logits in `config.logits_dtype`.
    """
    sequence = self.decoder.embed(
        decoder_input_tokens, decoder_target_tokens, decoder_positions,
        decoder_segment_ids, decoder_causal_attention)
    return self.decoder(
        None, sequence, deterministic=not enable_dropout,
        max_decode_length=max_decode_length)
