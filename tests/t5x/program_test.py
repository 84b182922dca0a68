import re
import subprocess
import sys

import numpy as np
import pytest

PROGRAMS = ('train', 'eval', 'infer', 'export')


def _run(program, *arguments):
  return subprocess.run(
      [sys.executable, '-m', f't5x.{program}', *arguments],
      capture_output=True, text=True, timeout=120, check=False)


FAULTS = {
    'a macro without value': (
        ['--gin_file=t5x/examples/t5/t5_1_1/tiny.gin',
         '--gin_file=t5x/configs/runs/{program}.gin'], ' has no value; set it'),
    'an unknown file': (['--gin_file=runs/nothing.gin'], 'no such file'),
    'a table of another width': (
        ['--gin_file=models/demo_prompt.gin',
         '--gin_file=prompts/from_sampled_vocab_numpy.gin',
         '--gin_file=runs/demo_finetune.gin', '--gin.EMBEDDING_FILE={table}',
         '--gin.MIXTURE_OR_TASK_NAME=demo_film_sentiment',
         '--gin.TRAIN_STEPS_RELATIVE=1', '--gin.MODEL_DIR={folder}/run'],
        'has width 4, but the model has 128'),
}


@pytest.mark.slow
@pytest.mark.parametrize('program,fault', [
    ('train', 'a macro without value'), ('eval', 'a macro without value'),
    ('infer', 'a macro without value'), ('export', 'a macro without value'),
    ('eval', 'an unknown file'),
    ('train', 'a table of another width')])
def test_bad_input_is_one_line_and_exit_code_2(program, fault, tmp_path):
  table = tmp_path / 'table.npy'
  np.save(table, np.ones((1000, 4), np.float32))
  arguments, said = FAULTS[fault]
  file = 'finetune' if program == 'train' else program
  done = _run(program, *(a.format(program=file, table=table, folder=tmp_path)
                         for a in arguments))
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error: ') and said in line
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('program', PROGRAMS)
def test_help_lists_the_published_flags(program):
  text = _run(program, '--helpfull').stdout
  for flag in ('gin_file', 'gin_bindings', 'gin_search_paths', 'tfds_data_dir',
               'dry_run', 'coordinator_address', 'process_count'):
    assert f'--{flag}' in text or f'--[no]{flag}' in text, flag


@pytest.mark.slow
@pytest.mark.parametrize('program', (*PROGRAMS, 'main'))
def test_help_says_what_there_is_to_say(program):
  done = _run(program, '--help')
  for said in ('--gin_file', '--[no]dry_run', 'A gin file; repeatable'):
    assert said in done.stdout, said
  assert ('--run_mode' in done.stdout) == (program == 'main')


@pytest.mark.slow
@pytest.mark.parametrize('arguments,code,said', [
    ([], 1, 'run_mode'),
    (['--run_mode=dance'], 1, 'train|eval|infer|precompile|export'),
    (['--run_mode=train'], 2, 'error: train'),
    (['--run_mode=precompile', '--gin_file=models/demo_prompt.gin',
      '--gin_file=t5x/configs/runs/precompile.gin'], 2,
     'MODEL_DIR is required'),
    (['--run_mode=train', '--dry_run', '--gin_file=gin/demo/source.gin',
      '--gin.MODEL_DIR={folder}/run'], 0, "'no'")])
def test_main_runs_the_mode_it_is_given(arguments, code, said, tmp_path):
  done = _run('main', *(a.format(folder=tmp_path) for a in arguments))
  assert done.returncode == code, done.stderr
  assert said in done.stdout + done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('program', PROGRAMS)
def test_a_program_with_nothing_to_do_does_not_end_well(program):
  done = _run(program)
  assert done.returncode == 2
  assert re.fullmatch(
      r"error: \w+: (train|evaluate|infer|save) needs '.*; give a --gin_file.*",
      done.stderr.strip())


@pytest.mark.slow
def test_words_that_are_no_flags_are_refused():
  done = _run('train', 'gin_file=x')
  assert done.returncode != 0
  assert "unknown argument 'gin_file=x'" in done.stdout + done.stderr
