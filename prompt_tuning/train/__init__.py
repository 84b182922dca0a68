"""Prompts inside models, and the names that published gin files spell."""
