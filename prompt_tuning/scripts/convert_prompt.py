"""Converts a prompt from any format to another.

    python -m prompt_tuning.scripts.convert_prompt \
      --input=/runs/source/numpy_checkpoints/checkpoint_1105000 \
      --output=adapter --format=peft --base_model=google/t5-base-lm-adapt

What a prompt may be read from stands in `prompt_tuning/prompt_files.py`. An
artifact that becomes another one keeps what it says. A prompt of another format
knows nothing of its model: --base_checkpoint writes down which one it is for,
so that no other is used with it.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import re
import sys

import numpy as np
from prompt_tuning import numpy_files
from prompt_tuning import prompt_artifacts
from prompt_tuning import prompt_files
from prompt_tuning.interop import peft
from t5x import checkpoints
from t5x import safetensors_files
from t5x.scripts import command

_PROMPT = re.compile(r'.*prompt.*')  # As the model files' assignment map says.


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('prompt_tuning.scripts.convert_prompt', __doc__)
  add = parser.add_argument
  add('--input', required=True, help='A prompt of any format.')
  add('--name', help='Which array, in a file of several.')
  add('--output', required=True, help='The file or folder that is written.')
  add('--format', required=True, choices=tuple(_WRITERS))
  add('--base_model', help="Format peft: the model's name on the hub.")
  add('--task_type', default=peft.TASK_TYPES[0], choices=peft.TASK_TYPES,
      help='Format peft.')
  add('--base_checkpoint',
      help='Format artifact: the frozen model, a checkpoint of any layout.')
  return command.run(parser, _convert, arguments)


def _convert(flags: argparse.Namespace) -> None:
  """Does what the flags ask for."""
  command.require_absent(flags.output)
  prompt = prompt_files.read(flags.input, flags.name)
  _WRITERS[flags.format](flags, prompt.astype(np.float32))
  norms = np.linalg.norm(prompt.astype(np.float64), axis=1)
  command.say(
      f'{flags.output}: {flags.format}, float32{list(prompt.shape)}, norms of '
      f'its rows {norms.min():.1f} to {norms.max():.1f}, mean '
      f'{norms.mean():.1f}, of {prompt.dtype} in '
      f'{prompt_files.located(flags.input)}')


def _write_numpy(flags: argparse.Namespace, prompt: np.ndarray) -> None:
  """A file as numpy.save writes it."""
  numpy_files.write(flags.output, prompt)


def _write_safetensors(flags: argparse.Namespace, prompt: np.ndarray) -> None:
  """A file of one tensor, `prompt`."""
  safetensors_files.write(flags.output, {'prompt': prompt}, {'format': 'pt'})


def _write_peft(flags: argparse.Namespace, prompt: np.ndarray) -> None:
  """An adapter."""
  peft.write(flags.output, prompt, base_model=flags.base_model,
             task_type=flags.task_type)


def _write_artifact(flags: argparse.Namespace, prompt: np.ndarray) -> None:
  """An artifact, with what the input knows of itself."""
  source = prompt_files.located(flags.input)
  if prompt_artifacts.is_artifact(source):
    record = prompt_artifacts.read(source).record
  else:
    record = prompt_artifacts.Record(
        shape=prompt.shape, sha256=prompt_artifacts.sha256(prompt))
  if flags.base_checkpoint:
    record = dataclasses.replace(record, base=_base(flags.base_checkpoint))
  prompt_artifacts.write(flags.output, prompt, record)
  if record.base is None:
    command.say('note: it does not say which model it is for, and can be used '
                'with any; --base_checkpoint names one')


def _base(path: str) -> prompt_artifacts.Base:
  """The frozen model in a checkpoint.

  Raises:
    ValueError: if there is none.
  """
  checkpoint = checkpoints.Checkpoint(checkpoints.find_checkpoint(path))
  parameters = {
      name.removeprefix('target/'): array
      for name, array in checkpoint.arrays.items()
      if name.startswith('target/') and not _PROMPT.fullmatch(name)}
  record = checkpoints.Save(checkpoint.directory).record if (
      checkpoints.is_run_save(checkpoint.directory)) else None
  if record is not None and record.base is not None:
    raise checkpoints.CheckpointError(
        f'{checkpoint.directory} is the save of a run that trained a part of '
        'a model, and holds that part only. Give the frozen model as '
        f'--base_checkpoint: {record.base.path or "it was initialised"}.')
  return prompt_artifacts.base_of(
      parameters, checkpoint.directory, checkpoint.step)


_WRITERS: dict[str, Callable[[argparse.Namespace, np.ndarray], None]] = {
    'peft': _write_peft,
    'numpy': _write_numpy,
    'safetensors': _write_safetensors,
    'artifact': _write_artifact,
}

if __name__ == '__main__':
  sys.exit(main())
