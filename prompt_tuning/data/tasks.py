"""All tasks of prompt tuning; `MIXTURE_OR_TASK_MODULE` may name it."""

# Imported for what they register.
from prompt_tuning.data import c4
from prompt_tuning.data import glue
from prompt_tuning.data import glue_transfer
from prompt_tuning.data import qa
from prompt_tuning.data import summarization
from prompt_tuning.data import super_glue

FAMILIES = (c4, glue, glue_transfer, qa, summarization, super_glue)
