"""All tasks of SPoT; `MIXTURE_OR_TASK_MODULE` may name it."""

from prompt_tuning.spot.data import sets

# Imported for what they register.
FAMILIES = sets.FAMILIES
