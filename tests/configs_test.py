"""Every shipped gin file parses, resolves and means what it says."""

import pathlib
import re
import shutil

from absl import flags
import gin
import numpy as np
from prompt_tuning.demo import files
from prompt_tuning.demo import tasks as demo_tasks
import pytest
import seqio
from t5x import eval as eval_script
from t5x import export
from t5x import gin_utils
from t5x import infer
from t5x import precompile
from t5x import program
from t5x import train
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = pathlib.Path(__file__).parent / 'golden'
FINETUNE = [
    '--gin.MIXTURE_OR_TASK_NAME=some_task',
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 4}",
    '--gin.TRAIN_STEPS=10',
    '--gin.INITIAL_CHECKPOINT_PATH=None',
    '--gin.MODEL_DIR=/nowhere',
    '--gin.RANDOM_SEED=0',
    '--gin.USE_CACHED_TASKS=False',
]


@pytest.fixture(scope='module', autouse=True)
def some_task():
  """A task for any vocabulary: its texts are token ids already."""
  tokens = {'inputs': [5, 6, 1], 'targets': [7, 1]}
  feature = seqio.Feature(seqio.PassThroughVocabulary(64, eos_id=1))
  seqio.TaskRegistry.add(
      'some_task',
      source=seqio.FunctionDataSource(
          lambda split, shuffle_files, seed=None: (
              tf.data.Dataset.from_tensors(tokens)),
          splits=('train', 'validation', 'test')),
      preprocessors=[],
      output_features=dict.fromkeys(tokens, feature))
  yield
  seqio.TaskRegistry.remove('some_task')


def dry_run(fn, *arguments) -> str:
  """Resolves a command line; returns its operative configuration."""
  values = flags.FlagValues()
  program.define_flags(values)
  values(gin_utils.rewrite_gin_args(['program', '--dry_run', *arguments]))
  program.execute(fn, values)
  return gin.operative_config_str()


def _names(*folders: str) -> list[str]:
  return sorted(
      str(path.relative_to(ROOT)) for folder in folders
      for path in (ROOT / folder).glob('*.gin'))


MODELS = [name for name in _names('configs/models')
          if re.search(r'_(small|base|large|xl|xxl|80b|150b)_prompt', name)]
# What a model file takes from the Hugging Face hub.
HUB = {f'configs/models/{ours}_{size}_prompt.gin': theirs.format(size)
       for ours, theirs in (('flan_t5', 'google/flan-t5-{}'),
                            ('t5_lm_adapt', 'google/t5-{}-lm-adapt'))
       for size in ('small', 'base', 'large', 'xl', 'xxl')}
BIG = re.compile(r'(large|xl|xxl|80b|150b|3B|11B)')
EXAMPLES = _names('t5x/examples/decoder_only/models', *(
    f't5x/examples/{family}' for family in (
        't5/t5_1_0', 't5/t5_1_1', 't5/mt5', 't5/byt5',
        'scalable_t5/t5_1_1', 'scalable_t5/mt5')))
# Whole runs: a model, a task and a run file in one.
WHOLE = _names('t5x/examples/t5/t5_1_1/examples')


def _marked(names):
  return [pytest.param(n, marks=pytest.mark.slow) if BIG.search(n) else n
          for n in names]


def _once(name):
  """Traces one layer for all of a big model; they are alike.

  Smaller models of each family are traced as their files say.
  """
  if BIG.search(name) and not re.search('decoder_only|scalable', name):
    return ['--gin.t5x.examples.t5.network.T5Config.scan_layers=True']
  return []


def test_every_file_is_covered():
  covered = {
      *MODELS, *EXAMPLES, *WHOLE, 't5x/examples/t5/local_tiny.gin',
      *_names('configs/prompts', 'configs/models/decoding'),
      *_names('configs/models/sizes', 'configs/architectures'),
      *_names('configs/runs', 't5x/configs/runs', 'gin/demo'),
      # Parts that the sized files above include.
      *(f'configs/models/{family}_prompt.gin'
        for family in ('t5_1_1', 'mt5', 'byt5')),
      'configs/models/hugging_face.gin',
      'configs/models/hugging_face_prompt.gin',
      'configs/models/demo.gin', 'configs/models/demo_prompt.gin'}
  shipped = {str(p.relative_to(ROOT)) for folder in ('configs', 'gin', 't5x')
             for p in (ROOT / folder).rglob('*.gin')}
  assert shipped == covered


# The published widths of the models; a prompt has 100 vectors of them.
WIDTHS = {
    'small': 512, 'base': 768, 'large': 1024, 'xl': 2048, 'xxl': 4096,
    '80b': 8192, '150b': 12288}
BYT5_WIDTHS = {
    'small': 1472, 'base': 1536, 'large': 1536, 'xl': 2560, 'xxl': 4672}


@pytest.mark.parametrize('name', _marked(MODELS))
def test_prompt_models_train_a_prompt_of_their_width(
    name, capsys, request, tmp_path):
  if name in HUB:
    # Enough of the repository for its vocabulary.
    folder = tmp_path / 'made'
    folder.mkdir()
    (folder / 'config.json').write_text('{"model_type": "t5"}')
    shutil.copy(demo_tasks.VOCABULARY_FILE, folder / 'spiece.model')
    request.getfixturevalue('hub')(HUB[name], folder)
  dry_run(train.train, f'--gin_file={name.removeprefix("configs/")}',
          '--gin_file=runs/prompt_finetune.gin', *_once(name), *FINETUNE)
  size = re.search(r'_([^_]+)_prompt', name)[1]
  width = (BYT5_WIDTHS if 'byt5' in name else WIDTHS)[size]
  assert (f'trained: {100 * width:,} in 1 (encoder/prompt/prompt/prompt)'
          in capsys.readouterr().out)


@pytest.mark.parametrize('name', HUB)
@pytest.mark.parametrize('fn,run,macro', [
    (train.train, 'prompt_finetune', 'INITIAL_CHECKPOINT_PATH'),
    (eval_script.evaluate, 'prompt_eval', 'CHECKPOINT_PATH'),
    (infer.infer, 'prompt_infer', 'CHECKPOINT_PATH'),
    (export.save, 'prompt_export', 'CHECKPOINT_PATH')])
def test_models_of_the_hub_bring_their_checkpoint(name, fn, run, macro):
  with gin_utils.main_function(fn):
    gin_utils.parse_gin_flags(
        ['.'], [name.removeprefix('configs/'), f'runs/{run}.gin'], [],
        finalize_config=False)
  assert str(gin.query_parameter(f'{macro}/gin.macro.value')) == '%HF_MODEL'
  assert gin.query_parameter(
      'HF_MODEL/gin.macro.value') == f'hf:{HUB[name]}'


def test_the_sizes_of_a_folder_are_those_of_its_config(
    theirs, tmp_path, capsys):
  theirs.write(tmp_path, {'vocab_size': 1000, 'd_model': 24})
  shutil.copy(demo_tasks.VOCABULARY_FILE, tmp_path / 'spiece.model')
  text = dry_run(
      train.train, '--gin_file=models/hugging_face_prompt.gin',
      '--gin_file=runs/prompt_finetune.gin', f'--gin.HF_MODEL={tmp_path}',
      '--gin.MIXTURE_OR_TASK_NAME=some_task', '--gin.TRAIN_STEPS=10',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 4}",
      '--gin.MODEL_DIR=/nowhere', '--gin.USE_CACHED_TASKS=False')
  assert 'trained: 2,400 in 1' in capsys.readouterr().out
  assert 't5_config.dtype = %ACTIVATION_DTYPE' in text
  assert 't5_config.dropout_rate = %DROPOUT_RATE' in text


@pytest.mark.parametrize('name', _names('configs/models/sizes'))
def test_sizes_follow_a_template(name):
  short = name.removeprefix('configs/')
  family = 'byt5' if 'byt5' in name else 't5_1_1'
  values = gin_utils.parse_gin_flags(
      ['.'], [f'models/{family}_prompt.gin', short], [])
  assert values is None
  for macro in ('NUM_HEADS', 'EMBED_DIM', 'MLP_DIM', 'HEAD_DIM',
                'NUM_ENCODER_LAYERS', 'NUM_DECODER_LAYERS'):
    assert gin.query_parameter(f'{macro}/gin.macro.value') > 0


@pytest.mark.parametrize('name', _names('configs/architectures'))
def test_architectures_ask_for_their_sizes(name):
  with pytest.raises(gin_utils.GinError, match=r'NUM_\w+ is required'):
    gin_utils.parse_gin_flags(['.'], [name], [])


@pytest.mark.parametrize('name', _marked(EXAMPLES))
def test_t5x_examples_resolve(name):
  dry_run(train.train, f'--gin_file={name}',
          '--gin_file=t5x/configs/runs/finetune.gin', *_once(name), *FINETUNE)


def test_a_prefix_language_model_resolves_for_inference():
  text = dry_run(
      infer.infer,
      '--gin_file=t5x/examples/decoder_only/models/base.gin',
      '--gin_file=t5x/configs/runs/infer.gin', '--gin.DROPOUT_RATE=0.0',
      '--gin.models.DecoderOnlyModel.inputs_bidirectional_attention=True',
      '--gin.decoding.temperature_sample.max_decode_steps=8',
      '--gin.CHECKPOINT_PATH=/nowhere', '--gin.INFER_OUTPUT_DIR=/nowhere',
      '--gin.MIXTURE_OR_TASK_NAME=some_task',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 4}")
  assert 'DecoderOnlyModel.inputs_bidirectional_attention = True' in text
  assert 'TransformerConfig.num_layers = 12' in text


@pytest.mark.parametrize('run', ['pretrain', 'finetune'])
def test_t5x_training_runs_resolve(run):
  dry_run(train.train, '--gin_file=t5x/examples/t5/t5_1_1/tiny.gin',
          f'--gin_file=t5x/configs/runs/{run}.gin', '--gin.DROPOUT_RATE=0.0',
          *FINETUNE)


# Alone it is for runs of pretrain.gin; with another run file for those.
@pytest.mark.parametrize('files,packed', [
    (['t5x/configs/runs/precompile.gin'], True),
    (['t5x/configs/runs/precompile.gin', 'runs/prompt_finetune.gin'], False),
    (['runs/prompt_precompile.gin'], False)])
def test_the_step_of_any_run_can_be_compiled_ahead(files, packed, capsys):
  model = ('t5x/examples/t5/t5_1_1/tiny.gin' if packed
           else 'models/t5_1_1_small_prompt.gin')
  text = dry_run(
      precompile.precompile,
      *(f'--gin_file={file}' for file in [model, *files]), *FINETUNE,
      '--gin.DROPOUT_RATE=0.1',
      '--gin.partitioning.PjitPartitioner.backend=None')
  assert f'train/utils.DatasetConfig.pack = {packed}' in text
  assert f'base_learning_rate = {1.0 if packed else 0.3}' in text
  said = capsys.readouterr().out
  assert ('encoder_segment_ids' in said) == packed
  assert packed or 'trained: 51,200 in 1' in said


@pytest.mark.parametrize('name', WHOLE)
def test_whole_examples_resolve(name, capsys):
  mode = re.search(r'_(eval|infer)\.gin', name)
  fn = {'_eval.gin': eval_script.evaluate, '_infer.gin': infer.infer}.get(
      mode and mode[0], train.train)
  output = {'_eval.gin': 'EVAL_OUTPUT_DIR', '_infer.gin': 'INFER_OUTPUT_DIR'
            }.get(mode and mode[0], 'MODEL_DIR')
  steps = 5000  # test_train_eval_t5_tiny.gin has its own.
  text = dry_run(
      fn, f'--gin_file={name}', f'--gin.{output}=/nowhere',
      '--gin.CHECKPOINT_PATH=/nowhere/checkpoint_1',
      '--gin.INITIAL_CHECKPOINT_PATH=None', f'--gin.TRAIN_STEPS={steps}',
      '--gin.MIXTURE_OR_TASK_NAME=some_task',
      '--gin.MIXTURE_OR_TASK_MODULE=None', '--gin.USE_CACHED_TASKS=False')
  assert 'inputs, 3 tokens' in capsys.readouterr().out
  for optimizer in ('adamw', 'lion'):
    if optimizer in name:
      assert f'[@optax.clip(), @optax.{optimizer}()]' in text


PROMPT_MACROS = {
    'from_class_labels': ["--gin.CLASS_LABELS=['positive', 'negative']"],
    'from_class_labels_numpy': ["--gin.CLASS_LABELS=['positive', 'negative']",
                                '--gin.EMBEDDING_FILE={table}'],
    'from_file': ['--gin.PROMPT_FILE={prompt}'],
    'from_sampled_vocab': [],
    'from_sampled_vocab_numpy': ['--gin.EMBEDDING_FILE={table}'],
    'from_string': ['--gin.PROMPT_STRING=the film was good'],
    'peft_random': [],
    'peft_sample_vocab': [],
    'peft_text': ['--gin.PROMPT_STRING=the film was good'],
}


@pytest.mark.parametrize('name', _names('configs/prompts'))
def test_prompt_files_resolve(name, tmp_path):
  rng = np.random.default_rng(0)
  table, prompt = tmp_path / 'table.npy', tmp_path / 'prompt.npy'
  np.save(table, rng.normal(size=(1024, 128)).astype(np.float32))
  np.save(prompt, rng.normal(size=(10, 128)).astype(np.float32))
  short = pathlib.Path(name).stem
  macros = [m.format(table=table, prompt=prompt) for m in PROMPT_MACROS[short]]
  text = dry_run(
      train.train, '--gin_file=models/demo_prompt.gin',
      f'--gin_file=prompts/{short}.gin', '--gin_file=runs/demo_finetune.gin',
      '--gin.MIXTURE_OR_TASK_NAME=demo_film_sentiment',
      '--gin.TRAIN_STEPS_RELATIVE=10',
      '--gin.MODEL_DIR=/nowhere', '--gin.RANDOM_SEED=0', *macros)
  initialiser = {
      'from_file': 'from_array', 'from_string': 'from_embedded_string',
      'peft_random': 'standard_normal',
      'peft_sample_vocab': 'from_any_embeddings',
      'peft_text': 'from_repeated_string'}.get(short, (
          'from_embedded_list' if 'labels' in short
          else 'from_sample_of_embeddings'))
  assert f'prompt_init = @prompt_init/prompts.{initialiser}()' in text


@pytest.mark.parametrize('name', _names('configs/models/decoding'))
@pytest.mark.parametrize('fn,run,output', [
    (eval_script.evaluate, 'prompt_eval', 'EVAL_OUTPUT_DIR'),
    (infer.infer, 'prompt_infer', 'INFER_OUTPUT_DIR')])
def test_evaluation_and_inference_resolve(name, fn, run, output, tmp_path):
  prompt = tmp_path / 'prompt.npy'
  np.save(prompt, np.zeros((10, 128), np.float32))
  dry_run(fn, '--gin_file=models/demo_prompt.gin',
          f'--gin_file={name.removeprefix("configs/")}',
          f'--gin_file=runs/{run}.gin',
          f'--gin.CHECKPOINT_PATH={files.checkpoint()}',
          f'--gin.{output}=/nowhere', f'--gin.PROMPT_FILE={prompt}',
          '--gin.MIXTURE_OR_TASK_NAME=demo_film_sentiment',
          '--gin.MIXTURE_OR_TASK_MODULE=prompt_tuning.demo.tasks',
          "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}")


@pytest.mark.parametrize('run,preprocessor', [
    ('t5x/configs/runs/export.gin', 'create_preprocessor'),
    ('t5x/configs/runs/export_seqio.gin', 'create_preprocessor_from_task'),
    ('runs/prompt_export.gin', 'create_preprocessor')])
def test_exports_resolve(run, preprocessor, tmp_path, capsys):
  prompt = tmp_path / 'prompt.npy'
  np.save(prompt, np.zeros((10, 128), np.float32))
  text = dry_run(
      export.save, '--gin_file=models/demo_prompt.gin', f'--gin_file={run}',
      f'--gin.CHECKPOINT_PATH={files.checkpoint()}',
      '--gin.MODEL_OUTPUT_DIR=/nowhere', '--gin.MODEL_NAME=demo',
      f'--gin.PROMPT_FILE={prompt}',
      '--gin.MIXTURE_OR_TASK_NAME=demo_film_sentiment',
      '--gin.MIXTURE_OR_TASK_MODULE=prompt_tuning.demo.tasks',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}")
  assert f'create_preprocessor_fn = @export_lib.{preprocessor}' in text
  assert 'parameters: 1,445,504' in capsys.readouterr().out


@pytest.mark.parametrize('run,macros', [
    ('runs/prompt_infer_file.gin', ['PROMPT_FILE={prompt}']),
    ('t5x/configs/runs/infer_from_file.gin', []),
    ('t5x/configs/runs/infer_from_tfexample_file.gin', [
        "TF_EXAMPLE_FILE_PATHS=['{record}']", 'TF_EXAMPLE_FILE_TYPE=tfrecord',
        "FEATURE_LENGTHS={{'inputs': 32, 'targets': 4}}"])])
def test_inference_from_files_resolves(run, macros, tmp_path):
  prompt, record = tmp_path / 'prompt.npy', tmp_path / 'a.tfrecord'
  np.save(prompt, np.zeros((10, 128), np.float32))
  record.touch()
  (tmp_path / 'inputs.txt').write_text('the film was good')
  text = dry_run(
      infer.infer, '--gin_file=models/demo_prompt.gin', f'--gin_file={run}',
      f'--gin.CHECKPOINT_PATH={files.checkpoint()}',
      '--gin.INFER_OUTPUT_DIR=/nowhere',
      f'--gin.INPUT_FILE={tmp_path / "inputs.txt"}',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}",
      *('--gin.' + m.format(prompt=prompt, record=record) for m in macros))
  assert "utils.DatasetConfig.split = 'infer'" in text


@pytest.mark.parametrize('name', _names('gin/demo'))
def test_experiments_keep_their_operative_configuration(name, tmp_path):
  # To accept a change, delete the golden file and run the test twice.
  prompt = tmp_path / 'prompt.npy'
  np.save(prompt, np.zeros((10, 128), np.float32))
  text = dry_run(
      train.train, f'--gin_file={name}', '--gin.MODEL_DIR=/nowhere',
      *([f'--gin.PROMPT_FILE={prompt}'] if 'target' in name else []),
      *([f'--gin.INITIAL_CHECKPOINT_PATH={files.checkpoint()}',
         '--gin.TRAIN_STEPS=1_000_000'] if 'adapt' in name else []))
  text = text.replace(str(tmp_path), '/tmp')
  text = re.sub(r"'[^']*prompt_tuning/demo/", "'prompt_tuning/demo/", text)
  # gin wraps a long value, and how long a path is depends on the checkout.
  text = text.replace(' = \\\n    ', ' = ')
  golden = GOLDEN / 'operative' / f'{pathlib.Path(name).stem}.gin'
  if not golden.exists():
    golden.parent.mkdir(exist_ok=True)
    golden.write_text(text)
    pytest.fail(f'{golden} did not exist; it does now. Look at it.')
  assert text == golden.read_text()
