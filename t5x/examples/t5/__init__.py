"""The T5 family as Flax linen modules."""
