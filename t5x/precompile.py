"""Compiles a run's training step: `python -m t5x.main --run_mode=precompile`.

Nothing is trained, and neither data nor parameters are read: shapes are enough,
and of the initial checkpoint the step, which the optimiser goes by. Where
compiled programs are kept (see `t5x.compilation_cache`), a `t5x.train` of the
same configuration finds its step there.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import numpy as np
from t5x import checkpoints
from t5x import datasets
from t5x import explain
from t5x import initialization
from t5x import keyword_options
from t5x import metric_writers
from t5x import model_info
from t5x import models
from t5x import partitioning
from t5x import schedules
from t5x import train as train_lib
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib

# A run file that binds arguments of `train` may be read too.
FOR_GIN = ('train',)
train = train_lib.train


@dataclasses.dataclass(frozen=True)
class PrecompileOptions:
  """Further arguments of `precompile`, which are not T5X's but `train`'s.

  Attributes:
    trainer_cls: called with model, partitioner, first_step, base_key and axes;
      None is a trainer with the default learning rate schedule, whose program
      is not that of a run with another one.
    checkpoint_cfg: gives the dtype and the step that the run starts with; None
      starts from scratch.
    use_hardware_rng: random numbers by the hardware's generator.
    dry_run: explain the run, and write and compile nothing.
  """

  trainer_cls: Callable[..., trainer_lib.Trainer] | None = None
  checkpoint_cfg: checkpoints.CheckpointConfig | None = None
  use_hardware_rng: bool = False
  dry_run: bool = False


@keyword_options.fields_of(PrecompileOptions)
def precompile(
    *,
    model: models.BaseModel,
    train_dataset_cfg: datasets.DatasetConfig,
    partitioner: partitioning.PjitPartitioner,
    model_dir: str,
    random_seed: int | None = None,
    **options: Any,
) -> None:
  """Compiles the step that `train` would compile with the same arguments.

  The first process writes to `model_dir`: `lowered_hlo_pre_optimization` and
  `lowered_hlo_post_optimization`, which are serialized HLO modules, and
  `assignment`, a numpy file with the ids of the mesh's devices.

  Args:
    model: what is trained, and on what loss.
    train_dataset_cfg: gives the shapes of a batch.
    partitioner: the mesh.
    model_dir: the run's folder.
    random_seed: of the run. The program does not depend on it.
    **options: fields of `PrecompileOptions`.

  Raises:
    ValueError: for a configuration that cannot be trained; nothing has been
      written then.
  """
  extra = PrecompileOptions(**options)
  converter = datasets.feature_converter(
      model.FEATURE_CONVERTER_CLS, train_dataset_cfg.pack)
  shapes = datasets.model_feature_shapes(train_dataset_cfg, converter)
  partitioner.get_data_layout(train_dataset_cfg.batch_size)
  datasets.verify_model_vocabs(train_dataset_cfg, model)
  restore = extra.checkpoint_cfg.restore if extra.checkpoint_cfg else None
  origin = initialization.find_origin(model_dir, restore, random_seed)
  infos = train_state_lib.describe(
      functools.partial(model.get_initial_variables, input_shapes=shapes),
      model.optimizer_def)
  trainer = train_lib.make_trainer(
      extra.trainer_cls or functools.partial(
          trainer_lib.Trainer,
          learning_rate_fn=schedules.create_learning_rate_scheduler()),
      model, partitioner, origin, infos=infos,
      key=origin.keys(extra.use_hardware_rng)[1])
  terminal = metric_writers.Terminal(0, 0)
  if extra.dry_run:
    terminal.say(explain.training(
        trainer, infos, train_dataset_cfg, shapes, (origin.step, origin.step)))
    return
  infos = initialization.restored_dtypes(infos, restore)
  state = train_state_lib.template(
      infos, train_state_lib.shardings(infos, partitioner), trainer.optimizer)
  types = datasets.model_feature_types(converter)
  batch: dict[str, Any] = {
      name: jax.ShapeDtypeStruct(
          shape, types[name], sharding=partitioner.batch_sharding)
      for name, shape in shapes.items()}
  began = time.monotonic()
  lowered = trainer.lower_train(state, batch)
  compiled = lowered.compile()
  seconds = time.monotonic() - began
  if jax.process_index() == 0:
    _write(model_dir, lowered, compiled, partitioner.mesh)
    terminal.say(
        f'{model_dir}: the step for {model_info.shapes_text(shapes)} was '
        f'compiled in {seconds:.1f} s; {_kept()}')


def _write(
    model_dir: str, lowered: jax.stages.Lowered,
    compiled: jax.stages.Compiled, mesh: Any,
) -> None:
  """Writes the two programs and the devices, over those of an earlier call."""
  folder = pathlib.Path(model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  before: Any = lowered.compiler_ir('hlo')
  executable: Any = compiled.runtime_executable()
  (after,) = executable.hlo_modules()
  (folder / 'lowered_hlo_pre_optimization').write_bytes(
      before.as_serialized_hlo_module_proto())
  (folder / 'lowered_hlo_post_optimization').write_bytes(
      after.as_serialized_hlo_module_proto())
  with (folder / 'assignment').open('wb') as stream:
    np.save(stream, mesh.device_ids)


def _kept() -> str:
  """Whether another process can load what was compiled."""
  settings: Any = jax.config
  folder = settings.jax_compilation_cache_dir
  if folder and settings.jax_enable_compilation_cache:
    return f'it is kept in {folder}'
  return 'it is kept nowhere, as the compilation cache is off'
