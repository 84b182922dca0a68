"""Configurations as users of T5X have them run unchanged.

Each file below is one that a user could have beside T5X's own; all of them
train the smallest network that T5X ships, on bytes, for three steps.
"""

import json
import re

import gin
import jax
import numpy as np
import pytest
import seqio
from t5x import actions
from t5x import checkpoints
from t5x import eval as eval_script
from t5x import gin_utils
from t5x import infer
from t5x import main
from t5x import program
from t5x import train
from t5x import train_state
import tensorflow as tf

TASK = 'a_users_task'
TEXTS = [('one two', 'uno'), ('three four five', 'tres'), ('six', 'seis'),
         ('seven eight', 'siete')] * 4

HEAD = """
from __gin__ import dynamic_registration
import __main__ as train_script
import optax
import seqio
from t5x import adafactor
from t5x import gin_utils
from t5x import models
from t5x import optimizers
from t5x import partitioning
from t5x import trainer
from t5x import utils
from t5x.examples.t5 import network
"""
RUN = """
include 't5x/examples/t5/t5_1_1/base.gin'
include 't5x/configs/runs/{run}.gin'
include 't5x/examples/t5/local_tiny.gin'

VOCABULARY = @seqio.ByteVocabulary()
MIXTURE_OR_TASK_NAME = 'a_users_task'
TASK_FEATURE_LENGTHS = {{'inputs': 16, 'targets': 8}}
USE_CACHED_TASKS = False
DROPOUT_RATE = 0.0
"""


@pytest.fixture(scope='module', autouse=True)
def task():
  feature = seqio.Feature(seqio.ByteVocabulary())

  def rows(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices(
        {'inputs': [i for i, _ in TEXTS], 'targets': [t for _, t in TEXTS]})

  def exact(targets, predictions):
    return {'exact': sum(
        t == p for t, p in zip(targets, predictions, strict=True))}

  seqio.TaskRegistry.add(
      TASK,
      source=seqio.FunctionDataSource(
          rows, splits=('train', 'validation', 'test')),
      preprocessors=[seqio.preprocessors.tokenize,
                     seqio.preprocessors.append_eos_after_trim],
      output_features={'inputs': feature, 'targets': feature},
      metric_fns=[exact])
  yield
  seqio.TaskRegistry.remove(TASK)


def arguments(tmp_path, text, run='pretrain', *extra):
  file = tmp_path / 'mine.gin'
  file.write_text(HEAD + RUN.format(run=run) + text)
  return [f'--gin_file={file}', f'--gin.MODEL_DIR={tmp_path}/run', *extra]


def rows_of(tmp_path, name='train/metrics.jsonl'):
  text = (tmp_path / 'run' / name).read_text()
  return [json.loads(line) for line in text.splitlines()]


# What the file binds; what its operative configuration must then say.
FILES = {
    'as it is': ('', ''),
    'a chain of optax': ("""
OPTIMIZER = @optimizers.chain()
optimizers.chain.transformations = [@optax.clip(), @optax.adamw()]
optax.clip.max_delta = 1.0
optax.adamw.learning_rate = @optax.warmup_cosine_decay_schedule()
optax.warmup_cosine_decay_schedule:
  init_value = 0.0
  peak_value = 1e-4
  warmup_steps = 1
  decay_steps = %TRAIN_STEPS
  end_value = 0.0
""", r'clip.max_delta = 1.0'),
    "T5X's schedule in optax": ("""
OPTIMIZER = @optimizers.adamw()
optimizers.adamw.learning_rate = @utils.create_learning_rate_scheduler()
utils.create_learning_rate_scheduler:
  factors = 'constant * linear_warmup * rsqrt_decay'
  base_learning_rate = 0.01
  warmup_steps = 10000
""", r'linear_warmup \* rsqrt_decay'),
    'lion': ("""
OPTIMIZER = @optimizers.lion()
optimizers.lion.learning_rate = 1e-4
""", r'lion.learning_rate = 0.0001'),
    'Adafactor with all it has': ("""
adafactor.Adafactor:
  learning_rate = None
  beta1 = 0.9
  factored = True
  epsilon1 = 1e-30
  epsilon2 = 1e-3
  clipping_threshold = 1.0
  global_norm_clip_threshold = 1.0
  multiply_by_parameter_scale = @adafactor.HParamMap()
  weight_decay_rate = 1e-5
  weight_decay_rate_lr_exponent = 2.0
  max_parameter_scale = 1.0
  min_dim_size_to_factor = 128
  factor_map = @factors/adafactor.HParamMap()
  skip_nan_updates = True
adafactor.HParamMap.rules = [('.*scale', False), ('.*', True)]
factors/adafactor.HParamMap.rules = [
    ('token_embedder', ('col', 'row')), ('.*', 'HEURISTIC')]
""", r'Adafactor.epsilon2 = 0.001'),
    'actions': ("""
train_script.train:
  actions = {'TRAIN_EVAL': [@trainer.TerminateOnNanAction(),
                            @trainer.EarlyStoppingAction()],
             'TRAIN': [@train/trainer.TerminateOnNanAction()]}
trainer.TerminateOnNanAction.task = %MIXTURE_OR_TASK_NAME
train/trainer.TerminateOnNanAction.task = 'train'
trainer.EarlyStoppingAction:
  metric = ('a_users_task', 'loss')
  mode = 'min'
  patience = 5
  atol = 0.0
  rtol = 0.0
""", r'EarlyStoppingAction.patience = 5'),
    'every argument of train': ("""
train_script.train:
  stats_period = 1
  gc_period = 2
  concurrent_metrics = False
  run_eval_before_training = True
  use_hardware_rng = True
  use_orbax = False
  get_dataset_fn = @utils.get_dataset
  train_eval_get_dataset_fn = @utils.get_training_eval_datasets
  verify_matching_vocabs_fn = @utils.verify_matching_vocabs
  train_state_initializer_cls = None
""", r'train.stats_period = 1'),
    'a submesh': ("""
partitioning.PjitPartitioner:
  num_partitions = None
  model_parallel_submesh = (1, 1, 1, 2)
""", r'model_parallel_submesh = \(1, 1, 1, 2\)'),
    'functions of gin_utils': ("""
TRAIN_STEPS = @gin_utils.sum_fn()
gin_utils.sum_fn:
  var1 = 1
  var2 = 2
utils.SaveCheckpointConfig.save_dataset = @gin_utils.bool_fn()
gin_utils.bool_fn.var1 = 0
train/utils.DatasetConfig.split = @gin_utils.string_split_fn()
gin_utils.string_split_fn:
  text = 'validation/train'
  separator = '/'
  maxsplit = 1
  index = 1
""", r'string_split_fn.index = 1'),
    'a vocabulary rounded up': ("""
network.T5Config.vocab_size = @utils.round_vocab_size_to_multiple()
utils.round_vocab_size_to_multiple:
  vocabulary = %VOCABULARY
  divisor = 128
""", r'round_vocab_size_to_multiple.divisor = 128'),
    'scanned layers': ("""
from t5x.examples.scalable_t5 import network as scalable
include 't5x/examples/scalable_t5/t5_1_1/small.gin'
VOCABULARY = @seqio.ByteVocabulary()
DROPOUT_RATE = 0.0
scalable.T5Config:
  emb_dim = 8
  num_encoder_layers = 2
  num_decoder_layers = 2
  mlp_dim = 16
  remat_policy = 'full'
""", r"T5Config.remat_policy = 'full'"),
    'saves': ("""
utils.CheckpointConfig:
  restore = None
  save = @utils.SaveCheckpointConfig()
utils.SaveCheckpointConfig:
  period = 2
  keep = 1
""", r'SaveCheckpointConfig.period = 2'),
}


# Those in which more could go wrong than in resolving them.
@pytest.mark.slow
@pytest.mark.parametrize('what,run', [
    ('as it is', 'finetune'), ('a chain of optax', 'pretrain'),
    ('Adafactor with all it has', 'pretrain'),
    ('every argument of train', 'pretrain'), ('saves', 'pretrain'),
    ('scanned layers', 'pretrain')])
def test_a_users_file_trains(what, run, tmp_path):
  text, _ = FILES[what]
  extra = (['--gin.INITIAL_CHECKPOINT_PATH=None'] if run == 'finetune' else [])
  # Optax raises a float to an integer count in its Adams.
  with jax.numpy_dtype_promotion('standard'):
    step, state = program.run_command(
        train.train, arguments(tmp_path, text, run, *extra))
  assert step == int(state.step) == 3
  saves = what == 'saves'
  # A row per save, where saves are the more frequent.
  assert rows_of(tmp_path)[-1]['step'] == (2 if saves else 3)
  evaluated = rows_of(tmp_path, f'training_eval/{TASK}/metrics.jsonl')
  begins = [0] if 'every argument' in what else []
  assert [row['step'] for row in evaluated] == [*begins, 3]
  if run == 'finetune':
    (row,) = rows_of(tmp_path, f'inference_eval/{TASK}-metrics.jsonl')
    assert row['exact'] == 0
  steps = checkpoints.all_steps(str(tmp_path / 'run'))
  assert steps == ([3] if saves else [])


@pytest.mark.parametrize('what', FILES)
def test_a_users_file_resolves(what, tmp_path, capsys):
  text, said = FILES[what]
  program.run_command(
      train.train, [*arguments(tmp_path, text), '--dry_run'])
  out = capsys.readouterr().out
  assert re.search(said, out), out
  assert "inputs, 8 tokens of 16: 'one two'" in out
  assert 'ids 114 113 104 35 119 122 114 1' in out
  assert not (tmp_path / 'run').exists()


EARLY = """
TRAIN_STEPS = 100
OPTIMIZER = @optimizers.sgd()
optimizers.sgd.learning_rate = 0.0
train_script.train:
  eval_period = 2
  actions = {'%s': [@trainer.EarlyStoppingAction()]}
trainer.EarlyStoppingAction:
  metric = ('%s', '%s')
  mode = 'min'
  patience = 1
utils.CheckpointConfig.save = @utils.SaveCheckpointConfig()
utils.SaveCheckpointConfig.period = 1000
"""


# Nothing is learned, so the second figure is no better than the first.
@pytest.mark.slow
@pytest.mark.parametrize('mode,owner,metric,run', [
    ('TRAIN_EVAL', TASK, 'loss', 'pretrain'),
    ('TRAIN', 'train', 'gradient_norm', 'pretrain'),
    ('INFER_EVAL', TASK, 'exact', 'finetune')])
def test_an_action_ends_the_run_with_a_save(
    mode, owner, metric, run, tmp_path, capsys):
  text = EARLY % (mode, owner, metric)
  if mode == 'TRAIN':  # The same batch again and again.
    text += 'train/utils.DatasetConfig.batch_size = 16\n'
    text += 'train/utils.DatasetConfig.pack = False\n'
  extra = (['--gin.INITIAL_CHECKPOINT_PATH=None'] if run == 'finetune' else [])
  step, _ = program.run_command(
      train.train, arguments(tmp_path, text, run, *extra))
  assert step == 4
  assert checkpoints.latest_step(str(tmp_path / 'run')) == 4
  assert f'an action after {mode} stops the run' in capsys.readouterr().out


@pytest.mark.slow
def test_evaluation_alone_is_work_enough(tmp_path):
  text = """
train_script.train:
  run_eval_before_training = True
  eval_period = 0
  total_steps = 0
"""
  step, _ = program.run_command(train.train, arguments(tmp_path, text))
  assert step == 0
  (row,) = rows_of(tmp_path, f'training_eval/{TASK}/metrics.jsonl')
  assert row['step'] == 0 and row['loss'] > 0


REFUSALS = {
    'a way to begin': (
        'train_script.train.train_state_initializer_cls = '
        '@adafactor.Adafactor', 'train_state_initializer_cls'),
    'a mode that is none': (
        "train_script.train.actions = {'EVAL': []}", "key 'EVAL'"),
    'an action without brackets': (
        "train_script.train.actions = {'TRAIN': [@trainer.BaseAction]}",
        'brackets'),
    'a misspelt parameter': (
        'trainer.Trainer.num_microbatch = 2',
        "no parameter 'num_microbatch'.*'num_microbatches'"),
    'a misspelt class': (
        'trainer.Trainr.num_microbatches = 2', 'Trainr.*does not exist'),
    'a missing macro': (
        'train_script.train.eval_period = %EVALUATION_PERIOD',
        'EVALUATION_PERIOD has no value'),
    'a missing include': (
        "include 't5x/examples/t5/t5_1_1/bse.gin'",
        't5_1_1/bse.gin does not exist'),
    'a misspelt task': (
        "MIXTURE_OR_TASK_NAME = 'a_user_task'",
        "'a_user_task' is not registered. Nearest: 'a_users_task'"),
    'no cache': ('USE_CACHED_TASKS = True', 'USE_CACHED_TASKS=False'),
    'too few embeddings': (
        'network.T5Config.vocab_size = 128',
        r'token ids up to 258, but \S+ has 128 rows'),
    'no room to end': (
        "TASK_FEATURE_LENGTHS = {'inputs': 16, 'targets': 3}\n"
        "MIXTURE_OR_TASK_NAME = 'a_users_task_cut'",
        r"\['targets'\] is 3, but all of the first 16 .* Set it to 6 or more"),
    'no example': (
        "MIXTURE_OR_TASK_NAME = 'a_users_task_empty'", 'has no example'),
}


@pytest.fixture(scope='module', autouse=True)
def odd_tasks(task):
  """The same with its end token cut off, and one of nothing."""
  plain = seqio.TaskRegistry.get(TASK)
  seqio.TaskRegistry.add(
      TASK + '_cut', source=plain.source, output_features=plain.output_features,
      preprocessors=[seqio.preprocessors.tokenize,
                     seqio.preprocessors.append_eos])
  seqio.TaskRegistry.add(
      TASK + '_empty', source=plain.source,
      output_features=plain.output_features,
      preprocessors=[seqio.preprocessors.tokenize, lambda rows: rows.take(0)])
  yield
  seqio.TaskRegistry.remove(TASK + '_cut')
  seqio.TaskRegistry.remove(TASK + '_empty')


@pytest.mark.parametrize('what', REFUSALS)
@pytest.mark.parametrize('dry', [(), ('--dry_run',)], ids=['run', 'dry run'])
def test_a_wrong_file_is_refused_before_anything_is_compiled(
    what, dry, tmp_path, monkeypatch):
  text, match = REFUSALS[what]
  compiled = []
  monkeypatch.setattr(
      'jax.stages.Lowered.compile', lambda *a, **k: compiled.append(a))
  with pytest.raises(ValueError, match=match) as error:
    program.run_command(train.train, [*arguments(tmp_path, text), *dry])
  message = str(error.value).split('\n  In call to configurable')[0]
  assert '\n' not in message
  assert not compiled and not (tmp_path / 'run').exists()


def test_a_checkpoint_of_another_size_names_the_file_that_fits(tmp_path):
  small = {'target/token_embedder/embedding': (32128, 512)}
  for stack, attention in (('encoder', 'attention'),
                           ('decoder', 'self_attention')):
    for i in range(8):
      small[f'target/{stack}/layers_{i}/mlp/wi_0/kernel'] = (512, 1024)
      small[f'target/{stack}/layers_{i}/{attention}/query/kernel'] = (512, 384)
  values = {name.removeprefix('target/'): np.broadcast_to(
      np.float32(0), shape) for name, shape in small.items()}
  checkpoints.Checkpointer(str(tmp_path / 'small')).save(
      train_state.TrainState(np.int32(0), values, {}, ()),
      checkpoints.RunRecord(0, 0))
  text = """
utils.CheckpointConfig.restore = @utils.RestoreCheckpointConfig()
utils.RestoreCheckpointConfig.mode = 'specific'
"""
  for dry in ([], ['--dry_run']):
    with pytest.raises(ValueError, match=(
        r'wi_0/kernel has shape \[512, 1024\], but the model has \[8, 16\]. It '
        r'has the size of t5x/examples/t5/t5_1_1/small.gin')):
      program.run_command(train.train, arguments(
          tmp_path, text, 'pretrain', *dry,
          '--gin.utils.RestoreCheckpointConfig.path='
          f'{tmp_path}/small/checkpoint_0'))


@pytest.mark.slow
def test_texts_that_are_cut_are_said_and_trained(tmp_path, capsys):
  text = """
MIXTURE_OR_TASK_NAME = 'a_users_task_cut'
TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 5}
"""
  program.run_command(train.train, arguments(tmp_path, text))
  out = capsys.readouterr().out
  assert re.search(r"50 % of the first 16 .*\['inputs'\] = 8 .* has 16", out)
  assert re.search(r"25 % of the first 16 .*\['targets'\] = 5 .* has 6", out)


@pytest.mark.parametrize('fn,run,output', [
    (eval_script.evaluate, 'eval', 'EVAL_OUTPUT_DIR'),
    (infer.infer, 'infer', 'INFER_OUTPUT_DIR')])
def test_evaluation_and_inference_explain_themselves(
    fn, run, output, tmp_path, capsys):
  file = tmp_path / 'mine.gin'
  file.write_text(
      "include 't5x/examples/t5/t5_1_1/tiny.gin'\n"
      f"include 't5x/configs/runs/{run}.gin'\n")
  program.run_command(fn, [
      f'--gin_file={file}', '--gin.CHECKPOINT_PATH=/nowhere/checkpoint_7',
      f'--gin.{output}={tmp_path}/out', f'--gin.MIXTURE_OR_TASK_NAME={TASK}',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 8}",
      '--gin.VOCABULARY=@seqio.ByteVocabulary()', '--dry_run'])
  out = capsys.readouterr().out
  assert "DatasetConfig.split = 'test'" in out
  assert "inputs, 8 tokens of 16: 'one two'" in out
  assert 'of which none is trained' in out and 'memory per device' in out
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('mode,name', main.FUNCTIONS.items())
def test_main_finds_the_function_of_a_mode(mode, name):
  assert main.function_of(mode).__name__ == name


def test_names_of_gin_utils():
  assert gin_utils.string_split_fn('a,b,c', ',') == ['a', 'b', 'c']
  assert gin_utils.string_split_fn('a,b,c', ',', 1, 1) == 'b,c'
  gin.parse_config('X = 17')
  assert 'X = 17' in gin_utils.get_gin_config_str()
  with pytest.raises(gin_utils.GinError, match='show_provenance'):
    gin_utils.get_gin_config_str(show_provenance=True)


def test_names_of_the_package():
  import t5x
  assert re.fullmatch(r'\d+\.\d+\.\d+\S*', t5x.__version__)
  assert t5x.checkpointing is checkpoints
  assert train.run_actions is actions.run_actions
