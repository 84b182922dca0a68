"""Networks whose encoder sees a prompt: one override each."""

from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Int
from prompt_tuning.train import prompts
from t5x.examples.t5 import network
from t5x.examples.t5 import sequence as sequence_lib

Sequence = sequence_lib.Sequence


class PromptEncoder(network.Encoder):
  """An encoder that adds a prompt between embedding and the first dropout.

  Attributes:
    prompt_factory: makes the prompt, a `train.prompts.Prompt`.
  """

  prompt_factory: Callable[[], nn.Module] | None = None

  def setup(self):
    if self.prompt_factory is None:
      raise ValueError(
          'PromptEncoder.prompt_factory is not set; bind it to %PROMPT.')
    super().setup()
    self.prompt = self.prompt_factory()

  def embed(
      self,
      tokens: Int[Array, 'B T'],
      positions: Int[Array, 'B T'] | None,
      segments: Int[Array, 'B T'] | None,
  ) -> Sequence:
    """The embedded tokens with the prompt, P places longer."""
    return prompts.extend(
        self.prompt, tokens, super().embed(tokens, positions, segments))


class PromptEncoderDecoder(network.Transformer):
  """A T5 whose encoder has a prompt, at `encoder/prompt/prompt/prompt`."""

  encoder_factory: Callable[..., nn.Module] = PromptEncoder
