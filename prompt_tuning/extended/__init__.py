"""Variants of prompts and of their training."""
