import ast
import os
import pathlib
import sys

import gin
import pytest
from t5x import gin_utils
from t5x import train

ROOT = pathlib.Path(__file__).parents[2]


# What published READMEs write, after the shell has taken its quotes.
@pytest.mark.parametrize('written,value', [
    ("'/a/path'", '/a/path'),
    ('"/a/path"', '/a/path'),
    ('/a/path', '/a/path'),
    ('gs://bucket/model-1/checkpoint_1100000', None),
    ('source/numpy_checkpoints/checkpoint_1105000/encoder.prompt.prompt.prompt',
     None),
    ('a_task_v002', None),
    ('word', None),
    ('1_150_000', 1_150_000),
    ('0.3', 0.3),
    ('1e-5', 1e-5),
    ('-7', -7),
    ('True', True),
    ('None', None),
    ("['positive', 'negative']", ['positive', 'negative']),
    ('(1, 1, 1, 2)', (1, 1, 1, 2)),
    ("{'inputs': 512, 'targets': 8}", {'inputs': 512, 'targets': 8}),
    ('the film was good', None),
    ('{label}', None),
    ('{question} or {answer}?', None),
])
def test_values_of_the_command_line(written, value):
  (binding,) = gin_utils.rewrite_gin_args([f'--gin.NAME={written}'])
  flag, _, text = binding.partition('=')
  assert flag == '--gin_bindings'
  name, _, text = text.partition(' = ')
  assert name == 'NAME'
  if value is None and written != 'None':
    value = written
  assert ast.literal_eval(text) == value


@pytest.mark.parametrize('reference', [
    '@optax.adamw()', '%OTHER', '[@optax.clip(), @optax.adamw()]',
    "{'inputs': %LENGTH}"])
def test_references_are_left_alone(reference):
  assert gin_utils.rewrite_gin_args([f'--gin.X={reference}']) == [
      f'--gin_bindings=X = {reference}']


def test_only_the_first_equals_sign_splits():
  assert gin_utils.rewrite_gin_args(['--gin.a/b.c="x=y"']) == [
      '--gin_bindings=a/b.c = "x=y"']


def test_other_arguments_pass_in_order():
  arguments = ['program', '--gin_file=a.gin', '--dry_run', '--gin.X=1']
  assert gin_utils.rewrite_gin_args(arguments) == [
      *arguments[:3], '--gin_bindings=X = 1']


def test_a_binding_without_value_is_quoted_back():
  with pytest.raises(ValueError, match='--gin.MODEL_DIR'):
    gin_utils.rewrite_gin_args(['--gin.MODEL_DIR'])


@pytest.mark.parametrize('name', [
    'prompts/from_file.gin',
    'configs/prompts/from_file.gin',
    'prompt_tuning/configs/prompts/from_file.gin',
    'models/t5_1_1_base_prompt.gin',
    'runs/prompt_finetune.gin',
    't5x/configs/runs/finetune.gin',
    't5x/examples/t5/t5_1_1/base.gin',
    'gin/demo/source.gin',
    'prompt_tuning/gin/demo/source.gin',
])
def test_published_spellings_are_found_from_anywhere(name, tmp_path):
  before = pathlib.Path.cwd()
  os.chdir(tmp_path)
  try:
    found = gin_utils.find_config(name)
  finally:
    os.chdir(before)
  assert found is not None and pathlib.Path(found).is_file()


def test_the_users_own_file_wins(tmp_path):
  own = tmp_path / 'prompts' / 'from_file.gin'
  own.parent.mkdir()
  own.write_text('X = 1\n')
  found = gin_utils.find_config('prompts/from_file.gin', [str(tmp_path)])
  assert found == str(own)


def fails(tmp_path, text: str, *bindings: str) -> str:
  """The one line that a configuration is refused with."""
  file = tmp_path / 'mine.gin'
  file.write_text('from __gin__ import dynamic_registration\n' + text)
  with pytest.raises(gin_utils.GinError) as error:
    gin_utils.parse_gin_flags([str(tmp_path)], ['mine.gin'], bindings)
  message = str(error.value)
  assert '\n' not in message
  return message


def test_missing_file():
  with pytest.raises(gin_utils.GinError, match='--gin_file=none.gin: no such'):
    gin_utils.parse_gin_flags(['.'], ['none.gin'], [])


def test_missing_include(tmp_path):
  message = fails(tmp_path, "include 'parts/none.gin'\n")
  assert 'parts/none.gin does not exist' in message and 'mine.gin' in message


def test_missing_macro(tmp_path):
  message = fails(
      tmp_path, 'from t5x import metrics\nmetrics.Sum.total = %GONE\n')
  assert 'GONE' in message and '--gin.GONE=VALUE' in message


def test_required_macro(tmp_path):
  message = fails(tmp_path, 'MODEL_DIR = %gin.REQUIRED\n')
  assert 'MODEL_DIR is required' in message


def test_unknown_parameter(tmp_path):
  message = fails(tmp_path, 'from t5x import metrics\nmetrics.Sum.totle = 1\n')
  assert "no parameter 'totle'" in message and 'line 3' in message


def test_unknown_name(tmp_path):
  message = fails(tmp_path, 'from t5x import metrics\nmetrics.Some.total = 1\n')
  assert 'metrics.Some does not exist' in message


def test_name_without_import(tmp_path):
  message = fails(tmp_path, 'metrics.Sum.total = 1\n')
  assert 'metrics is used but not imported' in message


def test_missing_module(tmp_path):
  message = fails(tmp_path, 'from t5x import no_such_module\n')
  assert 'no_such_module' in message


@pytest.mark.parametrize('text', ['X = (1, 2\n', 'X = 1 +\n', 'X ='])
def test_broken_syntax(tmp_path, text):
  assert 'cannot be parsed' in fails(tmp_path, text)


def test_unknown_binding_of_the_command_line(tmp_path):
  message = fails(tmp_path, 'X = 1\n', 'nothing.here = 2')
  assert '--gin.nothing.here=2' in message and 'nothing.here' in message


@pytest.mark.parametrize('binding,match', [
    ('t5x.decoding.temperature_sample.temprature = 0.5', "'temperature'"),
    ('t5x.models.EncoderDecoderModel.label_smothing = 0', "'label_smoothing'"),
    ('t5x.models.EncoderDecoderModel.decode_fnn = 0', "'decode_fn'"),
    ('train.eval_perod = 5', "'eval_period'"),
    ('train.stats_perod = 5', "'stats_period'")])
def test_a_misspelt_option_is_refused_when_parsed(tmp_path, binding, match):
  with gin_utils.main_function(train.train):
    message = fails(
        tmp_path, 'from t5x import decoding\nfrom t5x import models\n'
        'decoding.temperature_sample.topk = 5\n'
        'models.EncoderDecoderModel.z_loss = 0.0\n', binding)
  assert f'did you mean {match}' in message


def configured(value, other=2):
  return value, other


def test_main_function_takes_its_bindings_from_gin(tmp_path):
  program = sys.modules['__main__']
  file = tmp_path / 'mine.gin'
  file.write_text(
      'from __gin__ import dynamic_registration\n'
      'import __main__ as script\n'
      'script.configured.value = 1\n')
  with gin_utils.main_function(configured) as call:
    assert program.configured is configured
    gin_utils.parse_gin_flags([str(tmp_path)], ['mine.gin'], [])
  assert not hasattr(program, 'configured')
  assert call() == (1, 2)
  gin.clear_config()
  gin_utils.parse_gin_flags(['.'], [], ['configured.value = 5'])
  assert call() == (5, 2)


def test_the_programs_own_names_come_back():
  program = sys.modules['__main__']
  program.configured = 'mine'
  try:
    with gin_utils.main_function(configured):
      assert program.configured is configured
    assert program.configured == 'mine'
  finally:
    del program.configured


def test_missing_argument_of_the_main_function():
  with gin_utils.main_function(configured) as call:
    gin_utils.parse_gin_flags(['.'], [], [])
  with pytest.raises(gin_utils.GinError, match='value'):
    call()


def test_errors_of_the_program_itself_are_not_rewritten():
  def broken():
    raise ValueError('Something of its own.')

  with gin_utils.main_function(broken) as call:
    gin_utils.parse_gin_flags(['.'], [], [])
  with pytest.raises(ValueError, match=r'Something of its own') as error:
    call()
  assert not isinstance(error.value, gin_utils.GinError)


def test_summary_is_written(tmp_path):
  gin_utils.parse_gin_flags(['.'], [], ['X = 17'])
  gin_utils.summarize_gin_config(str(tmp_path / 'run'), None, 0)
  assert 'X = 17' in (tmp_path / 'run' / 'config.gin').read_text()


def test_a_reference_to_what_is_not_imported_is_explained(tmp_path):
  path = tmp_path / 'a.gin'
  path.write_text('NAME = @few_shot.task()\n')
  with pytest.raises(gin_utils.GinError, match=(
      r'nothing is called @few_shot.task\(\); import its module')), (
          gin_utils.one_line_errors('a.gin')):
    gin.parse_config_file(str(path))
    gin.finalize()
    gin.query_parameter('NAME/macro.value')
