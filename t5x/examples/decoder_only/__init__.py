"""A decoder that stands alone: causal and prefix language models."""
