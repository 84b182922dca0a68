"""Prompts of other libraries."""
