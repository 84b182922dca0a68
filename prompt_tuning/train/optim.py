"""Factoring rules for Adafactor that know of the prompt's axes."""

from t5x import adafactor


def standard_logical_factor_rules(
    rules: adafactor.FactorRules | None = None) -> adafactor.FactorRules:
  """T5X's rules and none for the axes of prompts.

  A prompt has two axes, and Adafactor ignores rules for such parameters: it
  factors a prompt of 128 or more vectors and no shorter one.

  Args:
    rules: the rules to add to; T5X's standard ones by default.

  Returns:
    From logical axis to its role.
  """
  rules = adafactor.standard_logical_factor_rules() if rules is None else rules
  unfactored = ('prompt', 'tasks', 'prompt+embed', 'prompt_embed')
  return {
      **rules,
      **{axis: adafactor.FactorDim.NONE for axis in unfactored},
      'batch': adafactor.FactorDim.BATCH,
  }
