"""Placement of the prompt's axes."""

from t5x import partitioning


def standard_logical_axis_rules() -> partitioning.LogicalAxisRules:
  """Prompts are whole on every device; to be appended to T5X's rules."""
  return (('prompt', None), ('prompt_embed', None))
