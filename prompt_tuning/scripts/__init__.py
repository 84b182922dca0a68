"""Tools around prompts, run as `python -m prompt_tuning.scripts.NAME`."""
