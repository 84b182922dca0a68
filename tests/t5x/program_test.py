import subprocess
import sys

import numpy as np
import pytest

PROGRAMS = ('train', 'eval', 'infer')


def _run(program, *arguments):
  return subprocess.run(
      [sys.executable, '-m', f't5x.{program}', *arguments],
      capture_output=True, text=True, timeout=120, check=False)


FAULTS = {
    'a macro without value': (
        ['--gin_file=t5x/examples/t5/t5_1_1/tiny.gin',
         '--gin_file=t5x/configs/runs/{program}.gin'], ' is required; set it'),
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
    ('infer', 'a macro without value'), ('eval', 'an unknown file'),
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
def test_words_that_are_no_flags_are_refused():
  done = _run('train', 'gin_file=x')
  assert done.returncode != 0
  assert "unknown argument 'gin_file=x'" in done.stdout + done.stderr
