"""Models whose decoding must know of a prompt."""

from typing import Any

import jax
from jaxtyping import Array, Int
from t5x import decoding
from t5x import models


class PromptDecoderOnlyModel(models.DecoderOnlyModel):
  """A language model whose network puts a prompt in front of the tokens.

  The network keeps the prompt's places to itself (`layers.PromptDecoder`), so
  this only holds it to the length that the configuration names.
  """

  def __init__(self, prompt_length: int, *args: Any, **kwargs: Any):
    """Binds a network with a prompt.

    Args:
      prompt_length: P.
      *args: those of `DecoderOnlyModel`.
      **kwargs: those of `DecoderOnlyModel`.
    """
    super().__init__(*args, **kwargs)
    self.prompt_length = prompt_length

  def _compute_kv_cache(
      self,
      params: models.Params,
      inputs: Int[Array, 'B S'],
      causal_attention_mask: Int[Array, 'B S'],
      max_decode_length: int,
  ) -> decoding.Cache:
    """See base class; the cache holds the prompt too.

    Raises:
      ValueError: if the network's prompt has another length.
    """
    cache = super()._compute_kv_cache(
        params, inputs, causal_attention_mask, max_decode_length)
    time = 1 + int(self.module.config.scan_layers)
    found = jax.tree.leaves(cache)[0].shape[time] - max_decode_length
    if found != self.prompt_length:
      raise ValueError(
          f'PromptDecoderOnlyModel.prompt_length is {self.prompt_length}, but '
          f'the prompt of the network has {found} places; bind both to '
          '%PROMPT_LENGTH.')
    return cache
