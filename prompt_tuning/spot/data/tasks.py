"""All tasks of SPoT; `MIXTURE_OR_TASK_MODULE` may name it."""

# Imported for what they register.
from prompt_tuning.spot.data import glue
from prompt_tuning.spot.data import mrqa
from prompt_tuning.spot.data import nli
from prompt_tuning.spot.data import summarization

FAMILIES = (glue, mrqa, nli, summarization)
