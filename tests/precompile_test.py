"""A step that is compiled ahead is the one that training then asks for."""

import contextlib

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
import pytest
from t5x import datasets
from t5x import precompile
from t5x import program
from t5x import train
from tensorflow.compiler.xla.service import hlo_pb2

pytestmark = pytest.mark.slow

RUN = ['--gin_file=gin/demo/source.gin', '--gin.TRAIN_STEPS_RELATIVE=1',
       '--gin.train.run_eval_before_training=False',
       '--gin.train.infer_eval_dataset_cfg=None']
# The step of a run: the same command line behind a run file.
AHEAD = ['--gin_file=t5x/configs/runs/precompile.gin', *RUN,
         '--gin.partitioning.PjitPartitioner.backend=None']


@contextlib.contextmanager
def _jax_with(**settings):
  """JAX's settings, for a while."""
  def update(values):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()

  before = {name: getattr(jax.config, name) for name in settings}
  update(settings)
  try:
    yield
  finally:
    update(before)


@pytest.fixture
def kept(tmp_path):
  """Compiled programs are kept, in a folder of the test's own."""
  with _jax_with(jax_compilation_cache_dir=str(tmp_path / 'kept'),
                 jax_persistent_cache_min_compile_time_secs=0.0):
    yield lambda: {path.name for path in (tmp_path / 'kept').iterdir()
                   if path.name.startswith('jit_moving_step-')
                   and path.name.endswith('-cache')}


def test_training_finds_its_step(kept, tmp_path, monkeypatch):
  monkeypatch.setattr(  # No example is read.
      datasets, 'numpy_batches', lambda *_: pytest.fail('data were read'))
  program.run_command(
      precompile.precompile, [*AHEAD, f'--gin.MODEL_DIR={tmp_path}/ahead'])
  monkeypatch.undo()
  (compiled,) = kept()
  # Another seed is the same program.
  program.run_command(train.train, [
      *RUN, '--gin.RANDOM_SEED=7', f'--gin.MODEL_DIR={tmp_path}/run'])
  assert kept() == {compiled}


def test_the_programs_and_the_devices_are_written(tmp_path, capsys):
  run = [*AHEAD, f'--gin.MODEL_DIR={tmp_path}/run', '--gin.BATCH_SIZE=8']
  program.run_command(precompile.precompile, [*run, '--dry_run'])
  assert 'of which trained: 1,280 in 1' in capsys.readouterr().out
  assert not (tmp_path / 'run').exists()
  with _jax_with(jax_enable_compilation_cache=False):
    program.run_command(precompile.precompile, [
        *run, '--gin.partitioning.PjitPartitioner.num_partitions=2'])
  assert 'it is kept nowhere' in capsys.readouterr().out
  assert len(list((tmp_path / 'run').iterdir())) == 3
  ids = np.load(tmp_path / 'run' / 'assignment')
  np.testing.assert_array_equal(
      ids, [[d.id for d in jax.devices()[i:i + 2]] for i in (0, 2, 4, 6)])
  modules = {}
  for moment in ('pre', 'post'):
    file = tmp_path / 'run' / f'lowered_hlo_{moment}_optimization'
    module = modules[moment] = hlo_pb2.HloModuleProto.FromString(
        file.read_bytes())
    assert module.name.startswith('jit_moving_step')
  parameters = [list(shape.dimensions) for shape
                in modules['pre'].host_program_shape.parameters]
  assert [10, 128] in parameters and [1024, 128] in parameters
  assert [8, 32] in parameters
  # A device has a quarter of the rows, and half of the heads.
  parameters = [list(shape.dimensions) for shape
                in modules['post'].host_program_shape.parameters]
  assert [2, 32] in parameters and [128, 64] in parameters


@pytest.mark.parametrize('wrong,said', [
    ('--gin.partitioning.PjitPartitioner.backend=tpu',
     "backend is 'tpu', but there are only cpu devices"),
    ('--gin.MIXTURE_OR_TASK_NAME=demo_film', 'Nearest: '),
    ('--gin.BATCH_SIZE=12', 'BATCH_SIZE 12'),
    ('--gin.INITIAL_CHECKPOINT_PATH=/nowhere', '/nowhere')])
def test_what_could_not_be_trained_is_refused(wrong, said, tmp_path):
  with pytest.raises(ValueError, match=said):
    program.run_command(precompile.precompile, [
        *AHEAD, f'--gin.MODEL_DIR={tmp_path}/run', wrong])
  assert not (tmp_path / 'run').exists()


def test_the_files_of_t5x_are_enough(tmp_path):
  # What T5X's own file binds, and no more.
  file = tmp_path / 'mine.gin'
  file.write_text("""
from __gin__ import dynamic_registration
import __main__ as train_script
from t5x import partitioning
from t5x import utils
include 'prompt_tuning/configs/models/demo_prompt.gin'
DROPOUT_RATE = 0.0
train_script.precompile:
  model = %MODEL
  model_dir = %MODEL_DIR
  train_dataset_cfg = @train/utils.DatasetConfig()
  partitioner = @partitioning.PjitPartitioner()
  random_seed = None
partitioning.PjitPartitioner:
  num_partitions = 1
  model_parallel_submesh = None
  backend = 'cpu'
  logical_axis_rules = [('batch', 'data'), ('vocab', None), ('embed', None),
    ('mlp', None), ('heads', None), ('kv', None), ('joined_kv', None),
    ('relpos_buckets', None), ('prompt', None), ('prompt_embed', None)]
train/utils.DatasetConfig:
  mixture_or_task_name = 'demo_film_sentiment'
  task_feature_lengths = {'inputs': 32, 'targets': 4}
  split = 'train'
  batch_size = 8
  shuffle = True
  seed = None
  use_cached = False
  pack = False
  module = 'prompt_tuning.demo.tasks'
""")
  program.run_command(precompile.precompile, [
      f'--gin_file={file}', f'--gin.MODEL_DIR={tmp_path}/run'])
  assert (tmp_path / 'run' / 'assignment').exists()
