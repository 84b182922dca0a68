"""A prompted model for notebooks.

model = gin_utils.value_of('%MODEL', ['models/t5_1_1_base_prompt.gin'])
ask = InteractiveModel(
model=model, checkpoint_path='/x/checkpoint_1100000',
prompt_file='encoder.prompt.prompt.prompt', batch_size=8,
task_feature_lengths={'inputs': 64, 'targets': 16})
ask.predict(['the film was good'])
"""

import dataclasses
import functools

from prompt_tuning import prompt_files
from prompt_tuning.train import partitioning as prompt_partitioning
from t5x import interactive_model
from t5x import partitioning


@dataclasses.dataclass(kw_only=True)
class InteractiveModel(interactive_model.InteractiveModel):
  """`t5x.interactive_model.InteractiveModel` with a prompt.

  Attributes:
    prompt_file: a trained prompt of any format, see `prompt_files`; None takes
      the prompt of the checkpoint, which must be a run's own then.
    prompt_path: the parameter that it is.
  """

  prompt_file: str | None = None
  prompt_path: str = 'encoder/prompt/prompt/prompt'

  def __post_init__(self):
    """Restores the parameters.

    Raises:
      ValueError: if they cannot be, or the file does not fit the model.
    """
    if self.prompt_file is not None:
      self.parameters = dict(self.parameters) | {
          self.prompt_path: prompt_files.read(self.prompt_file)}
      self.base_checks = (*self.base_checks, functools.partial(
          prompt_files.require_same_base, path=self.prompt_file,
          vocabulary=self.model.input_vocabulary))
    self.partitioner = self.partitioner or partitioning.PjitPartitioner(
        1, logical_axis_rules=partitioning.standard_logical_axis_rules(
            additional_rules=(
                prompt_partitioning.standard_logical_axis_rules())))
    super().__post_init__()
