"""Networks whose encoder or decoder sees a prompt: one override each."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Int
from prompt_tuning.train import prompts
from t5x.examples.decoder_only import network as decoder_only
from t5x.examples.t5 import network
from t5x.examples.t5 import sequence as sequence_lib

Sequence = sequence_lib.Sequence


def _prompt_of(module: Any) -> nn.Module:
  """What a module's `prompt_factory` makes.

  Raises:
    ValueError: if there is none.
  """
  if module.prompt_factory is None:
    raise ValueError(
        f'{type(module).__name__}.prompt_factory is not set; bind it to '
        '%PROMPT.')
  return module.prompt_factory()


class PromptEncoder(network.Encoder):
  """An encoder that adds a prompt between embedding and the first dropout.

  Attributes:
    prompt_factory: makes the prompt, a `train.prompts.Prompt`.
  """

  prompt_factory: Callable[[], nn.Module] | None = None

  def setup(self):
    super().setup()
    self.prompt = _prompt_of(self)

  def embed(
      self,
      tokens: Int[Array, 'B T'],
      positions: Int[Array, 'B T'] | None,
      segments: Int[Array, 'B T'] | None,
  ) -> Sequence:
    """The embedded tokens with the prompt, P places longer."""
    return prompts.extend(
        self.prompt, tokens, super().embed(tokens, positions, segments))


class PromptDecoder(network.Decoder):
  """A decoder that adds a prompt in front of its tokens.

  No logits are given for the prompt's places. In cached decoding the prompt is
  put into the cache with the first part of the tokens, and every further token
  stands P places later than the caller says:

    first part     p  q  0  a  b
    step                       .  x       at 3, which is place 5

  Attributes:
    prompt_factory: makes the prompt, a `train.prompts.Prompt`.
  """

  prompt_factory: Callable[[], nn.Module] | None = None

  def setup(self):
    super().setup()
    self.prompt = _prompt_of(self)

  def embed(
      self,
      tokens: Int[Array, 'B S'],
      targets: Int[Array, 'B S'] | None = None,
      positions: Int[Array, '#B S'] | None = None,
      segments: Int[Array, 'B S'] | None = None,
      prefix: Int[Array, 'B S'] | None = None,
  ) -> Sequence:
    """The embedded tokens with the prompt, P places longer."""
    if hasattr(self.prompt, 'combine'):
      prompts.require_in_front(self.prompt.combine)
    sequence = super().embed(tokens, targets, positions, segments, prefix)
    if targets is not None:
      longer = prompts.extend(self.prompt, tokens, sequence)
      return longer.replace(lead=longer.x.shape[1] - tokens.shape[1])
    # Of what is computed here only the shape is used.
    lead = self.prompt(tokens, sequence.x).shape[1] - tokens.shape[1]
    return sequence.replace(positions=sequence.positions + lead, lead=lead)


class PromptEncoderDecoder(network.Transformer):
  """A T5 whose encoder has a prompt, at `encoder/prompt/prompt/prompt`."""

  encoder_factory: Callable[..., nn.Module] = PromptEncoder


class PromptDecoderOnly(decoder_only.DecoderWrapper):
  """A language model with a prompt, at `decoder/prompt/prompt/prompt`."""

  decoder_factory: Callable[..., nn.Module] = PromptDecoder
