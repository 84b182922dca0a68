"""Prompts of one model used with another."""
