"""Makes the demo's checkpoint from a finished pretraining run.

    python -m t5x.train --gin_file=gin/demo/pretrain.gin \
      --gin.MODEL_DIR=/tmp/pretrain
    python -m t5x.train --gin_file=gin/demo/lm_adapt.gin \
      --gin.INITIAL_CHECKPOINT_PATH=/tmp/pretrain/checkpoint_1000 \
      --gin.MODEL_DIR=/tmp/lm_adapt
    python -m prompt_tuning.demo.make_checkpoint --run=/tmp/lm_adapt

It keeps the parameters, in bfloat16, and drops the optimiser's state.
"""

from collections.abc import Sequence
import pathlib

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
from t5x import checkpoints
from t5x import partitioning
from t5x import train_state

_RUN = flags.DEFINE_string('run', None, 'Folder of the run.', required=True)
_FOLDER = flags.DEFINE_string(
    'checkpoint_folder', str(pathlib.Path(__file__).parent / 'data'),
    'Folder in which checkpoint_<step> is written.')


def export(run: str, output: str) -> str:
  """Writes the parameters of a run's last save as a checkpoint of their own.

  Args:
    run: the run's folder.
    output: where `checkpoint_<step>` is written.

  Returns:
    The checkpoint.
  """
  arrays = checkpoints.open_checkpoint(checkpoints.find_checkpoint(run))
  whole = partitioning.PjitPartitioner(1).sharding()
  parameters = {
      name.removeprefix('target/'): array.put(whole, array.dtype)
      for name, array in arrays.items() if name.startswith('target/')}
  step = int(arrays['state/step'].get())
  state = train_state.TrainState(
      jax.device_put(jnp.int32(step), whole), parameters, {}, ())
  checkpoints.Checkpointer(output, dtype='bfloat16').save(
      state, checkpoints.RunRecord(first_step=0, seed=0))
  return checkpoints.get_checkpoint_dir(output, step)


def main(argv: Sequence[str]) -> None:
  """Writes the checkpoint."""
  del argv
  logging.set_verbosity(logging.WARNING)
  export(_RUN.value, _FOLDER.value)


if __name__ == '__main__':
  app.run(main)
