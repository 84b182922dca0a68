"""Converts whole models between Hugging Face's folders and T5X's checkpoints.

    python -m prompt_tuning.scripts.convert_checkpoint \
      --checkpoint=hf:google/flan-t5-base --to=t5x --output_dir=/checkpoints
    python -m prompt_tuning.scripts.convert_checkpoint \
      --checkpoint=/checkpoints/checkpoint_0 --to=hugging_face \
      --output_dir=/models/mine

What is read may be of any layout that the library reads, our own included; what
is written for T5X is read by T5X and by us. One tensor is in memory at a time.
Every one of them is reported; if one is missing, extra or of another shape than
a T5 has, nothing is written. A Hugging Face folder gets `config.json` and
safetensors, and no tokenizer: copy `spiece.model` to it. What that config says
is what the source's says if the source is such a folder, and otherwise what
shapes tell; what they do not tell is assumed, reported, and set by flags.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import os
import sys
from typing import Any

from etils import epath
from t5x import checkpoint_utils
from t5x import checkpoints
from t5x import hugging_face
from t5x import hugging_face_config
from t5x.scripts import command
from t5x.scripts import convert_checkpoint

LazyArray = checkpoints.LazyArray

_DISTANCE = 'relative_attention_max_distance'


def main(arguments: Sequence[str] | None = None) -> int:
  """The tool; returns its exit status."""
  parser = command.parser('prompt_tuning.scripts.convert_checkpoint', __doc__)
  add = parser.add_argument
  add('--checkpoint', required=True,
      help='A checkpoint of any layout, a folder of them, or hf:owner/name.')
  add('--step', type=int, help='Which of several.')
  add('--to', required=True, choices=('hugging_face', 't5x'))
  add('--output_dir', required=True,
      help="The folder of the model, or for T5X the one above its checkpoint's."
      )
  add('--dtype', default='keep', choices=('keep', 'float32', 'bfloat16'),
      help='Of the parameters.')
  add('--shard_bytes', type=int, default=hugging_face.LARGEST_SHARD,
      help="Of a safetensors file of Hugging Face's.")
  add('--feed_forward_proj', choices=sorted(hugging_face_config.PROJECTIONS),
      help="Of the model, if the source is no folder of Hugging Face's; by "
      'default gated-gelu or relu, by its shapes.')
  add(f'--{_DISTANCE}', type=int,
      help="Of the model, if the source is no folder of Hugging Face's; by "
      'default 128.')
  return command.run(parser, _convert, arguments)


def _convert(flags: argparse.Namespace) -> None:
  """Does what the flags ask for."""
  source = checkpoints.find_checkpoint(flags.checkpoint, flags.step)
  arrays = convert_checkpoint.whole_checkpoint(source, None)
  if flags.dtype != 'keep':
    arrays = {name: array.astype(flags.dtype)
              if name.startswith('target/') else array
              for name, array in arrays.items()}
  if flags.to == 'hugging_face':
    config, kind = _model(flags, source, arrays)
    _report(arrays, hugging_face.write(
        flags.output_dir, arrays, config=config, model_type=kind,
        largest_shard=flags.shard_bytes))
    written = flags.output_dir
  else:
    step = int(arrays['state/step'].get())
    command.require_absent(
        checkpoints.get_checkpoint_dir(flags.output_dir, step))
    _report(arrays, {})
    written = checkpoints.save_t5x_checkpoint(
        flags.output_dir, arrays, save_dtype=None)
  count = sum(name.startswith('target/') for name in arrays)
  command.say(f'{os.fspath(written)}: {count} parameters of {source}')


def _model(
    flags: argparse.Namespace, source: str, arrays: Mapping[str, LazyArray]
) -> tuple[hugging_face.T5Config, str]:
  """The config of the model, and its `model_type`."""
  given = {name: getattr(flags, name)
           for name in ('feed_forward_proj', _DISTANCE)}
  if checkpoint_utils.type_of(epath.Path(
      source)) == checkpoint_utils.CheckpointTypes.HUGGING_FACE:
    if named := [name for name, value in given.items() if value is not None]:
      raise checkpoints.CheckpointError(
          f'--{named[0]} is for checkpoints that do not say it; {source} says '
          'it in its config.json. Leave it out.')
    said = hugging_face_config.read_json(source)
    return hugging_face_config.parse(said, source), said['model_type']
  config = hugging_face.config_of(arrays)
  changes: dict[str, Any] = {}
  if (projection := given['feed_forward_proj']) is not None:
    changes['mlp_activations'] = hugging_face_config.PROJECTIONS[projection][0]
  elif len(config.mlp_activations) > 1:
    _say_assumed('feed_forward_proj', 'gated-gelu')
  if (distance := given[_DISTANCE]) is not None:
    changes['relpos_max_distance'] = distance
  else:
    _say_assumed(_DISTANCE, config.relpos_max_distance)
  return dataclasses.replace(config, **changes), 't5'


def _say_assumed(flag: str, value: Any) -> None:
  """Reports what a checkpoint's shapes do not tell."""
  command.say(f'assumed: {flag} {value}, which the checkpoint does not say; '
              f'--{flag} sets it')


def _report(
    arrays: Mapping[str, LazyArray], names: Mapping[str, str]) -> None:
  """A line per parameter: its name, their name for it, shape, dtype."""
  for name, array in sorted(arrays.items()):
    if name.startswith('target/'):
      other = f' -> {names[name]}' if name in names else ''
      command.say(f'{name.removeprefix("target/")}{other} '
                  f'{list(array.shape)} {array.dtype}')


if __name__ == '__main__':
  sys.exit(main())
