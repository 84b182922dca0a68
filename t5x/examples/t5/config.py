"""Sizes and choices of T5's blocks, and of an encoder-decoder of them."""

from collections.abc import Sequence
import dataclasses

REMAT_POLICIES = ('none', 'minimal', 'full')


@dataclasses.dataclass(frozen=True)
class BlockConfig:
  """Hyperparameters of blocks and what surrounds them, with T5X's names.

  Attributes:
    vocab_size: rows of the embedding table, V.
    dtype: of activations.
    emb_dim: width, H.
    num_heads: attention heads, N.
    head_dim: width of a head, D.
    mlp_dim: width of the hidden layer of a block.
    mlp_activations: one activation per input projection, multiplied together:
      `('relu',)` for T5 1.0, `('gelu', 'linear')` for T5 1.1.
    dropout_rate: of embeddings, attention, hidden layers and residuals.
    logits_via_embedding: tie the output to the embedding table (T5 1.0).
    float32_attention_logits: compute attention weights in float32 although
      activations have another dtype.
    param_dtype: dtype in which parameters are kept.
    logits_dtype: dtype in which the output scores are computed.
    scan_layers: stack the blocks' parameters and scan over them, which compiles
      once per stack instead of once per block.
    param_scan_axis: axis of a stacked parameter that counts blocks.
    remat_policy: what the backward pass recomputes: 'none', 'minimal' (all but
      matrix products) or 'full'.
    relpos_num_buckets: rows of the relative-position tables.
    relpos_max_distance: distances from here on share a bucket.
  """

  vocab_size: int
  dtype: str = 'float32'
  emb_dim: int = 512
  num_heads: int = 8
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: Sequence[str] = ('relu',)
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  float32_attention_logits: bool = False
  param_dtype: str = 'float32'
  logits_dtype: str = 'float32'
  scan_layers: bool = False
  param_scan_axis: int = 1
  remat_policy: str = 'none'
  relpos_num_buckets: int = 32
  relpos_max_distance: int = 128

  def __post_init__(self):
    if self.remat_policy not in REMAT_POLICIES:
      raise ValueError(
          f'{type(self).__name__}.remat_policy is {self.remat_policy!r}; '
          f'expected one of {", ".join(REMAT_POLICIES)}.')

  @property
  def decoder_layers(self) -> int:
    """Blocks of the decoder."""
    raise NotImplementedError(type(self).__name__)


@dataclasses.dataclass(frozen=True)
class T5Config(BlockConfig):
  """Hyperparameters of an encoder-decoder, with T5X's names.

  Attributes:
    num_encoder_layers: blocks of the encoder.
    num_decoder_layers: blocks of the decoder.
  """

  num_encoder_layers: int = 6
  num_decoder_layers: int = 6

  @property
  def decoder_layers(self) -> int:
    """Blocks of the decoder."""
    return self.num_decoder_layers
