"""SPoT, soft prompt transfer: what the paper does with trained prompts."""
