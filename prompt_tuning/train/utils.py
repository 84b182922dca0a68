"""Names that published gin files spell as `prompt_utils.NAME`."""

from prompt_tuning.train.numpy_checkpoints import Checkpointer
from prompt_tuning.train.numpy_checkpoints import match_any
from prompt_tuning.train.numpy_checkpoints import np_save

__all__ = ['Checkpointer', 'match_any', 'np_save']
