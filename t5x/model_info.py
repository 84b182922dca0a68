"""A model's parameters as text: `model-info.txt` and the dry run."""

from collections.abc import Mapping
import math
from typing import Any

import jax
from t5x import partitioning
from t5x import train_state as train_state_lib

ParameterInfos = train_state_lib.ParameterInfos


def _line(name: str, size: int, shape: str, spec: Any) -> str:
  """One variable in T5X's columns."""
  return (f'Variable {name:<80} size {size:<12} shape {shape:<40} '
          f'partition spec {tuple(spec)}')


def model_info(
    infos: ParameterInfos,
    placement: Mapping[str, partitioning.NamedSharding],
    state: train_state_lib.TrainState,
) -> str:
  """The text of `model-info.txt`, in T5X's format.

  Args:
    infos: what is known of every parameter.
    placement: where every parameter lives.
    state: a state or its template; its optimiser's variables are listed too.

  Returns:
    A line per parameter, the counts, a line per optimiser variable.
  """
  lines = []
  for path, info in sorted(infos.items()):
    axes = [axis or 'None' for axis in info.axes]
    shape = ', '.join(
        f'{axis}={size}' for axis, size in zip(axes, info.shape, strict=True))
    lines.append(_line(path, math.prod(info.shape), f'({shape})',
                       placement[path].spec))
  lines += [f'Total number of parameters: {count(infos)}',
            f'Trainable parameters: {count(infos, trainable=True)}', '']
  leaves = jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
  for keys, leaf in leaves:
    name = 'param_states/' + jax.tree_util.keystr(
        keys, simple=True, separator='/')
    lines.append(_line(name, math.prod(leaf.shape), str(leaf.shape),
                       leaf.sharding.spec))
  lines.append(_line('step', 1, '()', ()))
  return '\n'.join(lines) + '\n'


def count(infos: ParameterInfos, trainable: bool | None = None) -> int:
  """How many numbers the parameters hold, all of them or one kind."""
  return sum(math.prod(info.shape) for info in infos.values()
             if trainable in (None, info.trainable))


def shapes_text(shapes: Mapping[str, tuple[int, ...]]) -> str:
  """Shapes by name in one line."""
  return ', '.join(f'{name} {list(shape)}' for name, shape in shapes.items())


def summary(
    infos: ParameterInfos,
    batch: Mapping[str, tuple[int, ...]],
    first_step: int,
    total_steps: int,
) -> str:
  """What a run would train, on what, and for how long."""
  trained = [path for path, info in infos.items() if info.trainable]
  shown = ', '.join(trained[:4]) + (', ...' if len(trained) > 4 else '')
  return '\n'.join([
      f'parameters: {count(infos):,}, of which trained: '
      f'{count(infos, trainable=True):,} in {len(trained)} ({shown})',
      f'batch: {shapes_text(batch)}',
      f'steps: {first_step:,} to {total_steps:,}',
  ])
