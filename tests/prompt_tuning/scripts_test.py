"""The tools on tiny checkpoints, called as their command lines call them."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from prompt_tuning import prompt_artifacts
from prompt_tuning import prompt_files
from prompt_tuning.demo import files
from prompt_tuning.scripts import convert_prompt
from prompt_tuning.scripts import diff_checkpoints
from prompt_tuning.scripts import extract_variable
from prompt_tuning.scripts import find_module
from prompt_tuning.scripts import inspect_prompt
from prompt_tuning.scripts import recreate_checkpoint
from prompt_tuning.scripts import subsample_vocab
from prompt_tuning.train import numpy_checkpoints
import pytest
import sentencepiece
from t5x import checkpoints
from t5x import lazy_arrays
from t5x.scripts import convert_checkpoint

PROMPT = 'encoder/prompt/prompt/prompt'
TABLE = np.arange(80, dtype=np.float32).reshape(20, 4)
KERNEL = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)


def entries(**changes):
  values = {'target/token_embedder/embedding': TABLE,
            'target/mlp/kernel': KERNEL, 'state/step': np.int32(3),
            'state/param_states/mlp/kernel/v_row': np.ones(4, np.float32)}
  values |= {name.replace('__', '/'): value
             for name, value in changes.items()}
  return {name: lazy_arrays.of_array(name, np.asarray(value))
          for name, value in values.items() if value is not None}


def write(folder, **changes):
  return checkpoints.save_t5x_checkpoint(str(folder), entries(**changes))


@pytest.fixture
def checkpoint(tmp_path):
  return write(tmp_path / 'base')


@pytest.fixture(scope='module')
def run(tiny, tmp_path_factory):
  """A prompt run with its frozen model, its last save and numpy files."""
  root = tmp_path_factory.mktemp('run')
  _, state = tiny.start(
      tiny.model(r'.*/prompt/.*', prompt_length=3), first_step=5)
  base = checkpoints.save_t5x_checkpoint(str(root / 'base'), {
      name: lazy_arrays.of_array(name, value) for name, value in (
          {f'target/{path}': x for path, x in state.frozen.items()}
          | {'state/step': np.int32(5)}).items()})
  checkpoints.save_t5x_checkpoint(str(root / 'only'), {
      name: lazy_arrays.of_array(name, value) for name, value in {
          f'target/{PROMPT}': TABLE, 'state/step': np.int32(5)}.items()})
  record = checkpoints.RunRecord(
      first_step=5, seed=0, base=checkpoints.BaseRecord(base, 5, 'f' * 64))
  saver = numpy_checkpoints.Checkpointer(
      str(root / 'run'), save_paths=[r'.*/prompt/.*'], keep=1)
  prompts = {}
  for step in (6, 7):
    prompts[step] = np.full((3, 8), step, np.float32)
    saver.save(state.replace(
        step=jnp.int32(step),
        trainable={PROMPT: jnp.asarray(prompts[step])}), record)
  return root, state, prompts


@pytest.mark.parametrize('path', [
    'mlp/kernel', '/mlp/kernel/', 'target/mlp/kernel', '/target/mlp/kernel'])
def test_extract_variable(checkpoint, tmp_path, path, capsys):
  output = tmp_path / 'new' / 'kernel.npy'
  assert extract_variable.main([
      f'--checkpoint_dir={checkpoint}', f'--variable_path={path}',
      f'--output_path={output}']) == 0
  np.testing.assert_array_equal(np.load(output), KERNEL)
  assert 'float32[4, 6]' in capsys.readouterr().out


def test_extract_variable_reads_no_other(tmp_path, monkeypatch):
  folder = pathlib.Path(write(tmp_path / 'base'))
  (folder / 'manifest.json').unlink()  # It would be missed.
  (folder / 'target.token_embedder.embedding' / '0.0').write_bytes(b'damaged')
  monkeypatch.chdir(tmp_path)
  assert extract_variable.main([
      f'--checkpoint_dir={folder}', '--variable_path=mlp/kernel',
      '--restore_dtype=bfloat16', '--output_path=bare.npy']) == 0
  np.testing.assert_array_equal(
      np.load('bare.npy'), KERNEL.astype(jnp.bfloat16).astype(np.float32))


def test_inspect_prompt(checkpoint, tmp_path, capsys):
  np.save(tmp_path / 'prompt.npy', 3 * TABLE[[5, 2]])
  assert inspect_prompt.main([
      str(tmp_path / 'prompt.npy'), f'--checkpoint_dir={checkpoint}',
      '--neighbours=1']) == 0
  shown = capsys.readouterr().out
  lengths = 3 * np.linalg.norm(TABLE[[5, 2]], axis=1)
  for place, (token, length) in enumerate(zip([5, 2], lengths, strict=True)):
    assert re.search(
        rf'^ +{place} +{length:.4g} +<{token}> 1.00', shown, re.MULTILINE)
  assert (f'2 tokens of width 4; length on average {lengths.mean():.4g}, of '
          f'embeddings {np.linalg.norm(TABLE, axis=1).mean():.4g}.') in shown


def test_inspect_prompt_in_words(tmp_path, capsys):
  model, = pathlib.Path(files.checkpoint()).parent.glob('*.model')
  vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(model))
  (token,) = vocabulary.encode('film')
  table = checkpoints.open_checkpoint(files.checkpoint())[
      'target/token_embedder/embedding'].get().astype(np.float32)
  np.save(tmp_path / 'prompt.npy', table[[token + 1, token]])
  assert inspect_prompt.main([
      str(tmp_path / 'prompt.npy'), f'--checkpoint_dir={files.checkpoint()}',
      f'--vocabulary={model}', '--neighbours=1', '--labels', 'film']) == 0
  shown = capsys.readouterr().out
  assert f'{vocabulary.id_to_piece(token)} 1.00' in shown
  assert "'film' is near to 1 tokens: [1]" in shown


def test_subsample_vocab(checkpoint, tmp_path):
  def draw(name, *flags):
    assert subsample_vocab.main([
        f'--checkpoint_dir={checkpoint}', f'--output_path={tmp_path / name}',
        *flags]) == 0
    return np.load(tmp_path / name)

  prompt = draw('a', '--prompt_length=50', '--population_size=6')
  assert prompt.shape == (50, 4)
  rows = prompt[:, 0] / 4
  assert set(rows) == set(range(6))  # With replacement, among the first six.
  np.testing.assert_array_equal(prompt, TABLE[rows.astype(int)])
  np.testing.assert_array_equal(
      draw('b', '--prompt_length=50', '--population_size=6'), prompt)
  other = draw('c', '--prompt_length=50', '--population_size=6', '--seed=1')
  assert (other != prompt).any()
  assert draw('d', '--prompt_length=300',
              '--population_size=0')[:, 0].max() == 76
  assert draw('e').shape == (100, 4)


def diff(*arguments):
  return diff_checkpoints.main([str(a) for a in arguments])


def test_equal_checkpoints_do_not_differ(checkpoint, tmp_path, capsys):
  other = write(tmp_path / 'other', state__step=np.int32(4))
  assert diff(checkpoint, other) == 0
  assert '3 arrays compared, 0 differ' in capsys.readouterr().out
  assert diff(checkpoint, other, '--compare_step') == 1
  assert 'state/step' in capsys.readouterr().out


@pytest.mark.parametrize('change,flags,status', [
    ({'target__mlp__kernel': KERNEL + 1e-3}, [], 1),
    ({'target__mlp__kernel': KERNEL + 1e-3}, ['--check=shape'], 0),
    ({'target__mlp__kernel': KERNEL * (1 + 1e-7)}, [], 0),
    ({'target__mlp__kernel': KERNEL[:2]}, ['--check=shape'], 1),
    ({'target__mlp__kernel': KERNEL[:2]}, ['--check=value'], 0),
    ({'target__mlp__kernel': KERNEL * np.nan}, [], 1),
    ({'target__more': KERNEL}, [], 0),
    ({'target__mlp__kernel': None}, [], 0),
    ({'state__param_states__mlp__kernel__v_row': np.zeros(4)}, [], 1),
    ({'state__param_states__mlp__kernel__v_row': np.zeros(4)},
     ['--limit_to_params'], 0),
])
def test_differences_decide_the_exit_status(
    checkpoint, tmp_path, change, flags, status):
  assert diff(checkpoint, write(tmp_path / 'other', **change), *flags) == (
      status)


def test_the_report_of_a_difference(checkpoint, tmp_path):
  changed = KERNEL.copy()
  changed[0, 0] += 0.5
  other = write(tmp_path / 'other', target__mlp__kernel=changed,
                target__more=KERNEL)
  assert diff(checkpoint, other, f'--output={tmp_path / "report"}') == 1
  report = json.loads((tmp_path / 'report').read_text())
  assert report['target/more'] == {'missing': 'mismatch'}
  assert report['target/token_embedder/embedding']['value'] == {
      'status': 'match', 'percentage': 100.0, 'max_error': 0.0}
  row = report['target/mlp/kernel']
  assert (row['missing'], row['shape']) == ('match', 'match')
  assert row['value']['status'] == 'mismatch'
  assert row['value']['percentage'] == pytest.approx(100 * 23 / 24)
  assert row['value']['max_error'] == pytest.approx(0.5)


def test_a_share_of_the_arrays_is_compared(checkpoint, capsys):
  assert diff(checkpoint, checkpoint, '--frac=0.5') == 0
  assert '2 arrays compared' in capsys.readouterr().out


def test_a_run_is_converted_with_its_frozen_model(run, tmp_path):
  root, state, prompts = run
  assert convert_checkpoint.main([
      f'--checkpoint_dir={root / "run"}', f'--output_dir={tmp_path}']) == 0
  tree = checkpoints.load_t5x_checkpoint(str(tmp_path), lazy_parameters=False)
  assert tree['state']['step'] == 7
  arrays = checkpoints.open_checkpoint(str(tmp_path / 'checkpoint_7'))
  np.testing.assert_array_equal(
      arrays[f'target/{PROMPT}'].get(), prompts[7])
  for path, value in state.frozen.items():
    np.testing.assert_array_equal(arrays[f'target/{path}'].get(), value)
  assert f'state/param_states/{PROMPT}/v' in arrays


def test_an_earlier_prompt_is_recreated(run, tmp_path):
  root, state, prompts = run
  assert recreate_checkpoint.main([
      f'--model_dir={root / "run"}', '--step=6',
      f'--output_dir={tmp_path}']) == 0
  arrays = checkpoints.open_checkpoint(str(tmp_path / 'checkpoint_6'))
  assert arrays['state/step'].get() == 6
  np.testing.assert_array_equal(
      arrays[f'target/{PROMPT}'].get(), prompts[6])
  assert {name for name in arrays if name.startswith('target/')} == {
      f'target/{path}' for path in (*state.frozen, PROMPT)}


def test_find_module(capsys):
  assert find_module.main(['prompt_tuning']) == 0
  folder = pathlib.Path(capsys.readouterr().out.strip())
  assert (folder / 'prompts.py').exists()
  assert find_module.main(['t5x.checkpoints']) == 0
  assert pathlib.Path(capsys.readouterr().out.strip()).name == 't5x'


FORMATS = {'numpy': 'prompt.npy', 'safetensors': 'prompt.safetensors',
           'peft': 'adapter', 'artifact': 'prompt.artifact'}


@pytest.mark.parametrize('first', FORMATS)
@pytest.mark.parametrize('second', FORMATS)
def test_a_prompt_goes_from_any_format_to_any(tmp_path, first, second, capsys):
  values = np.random.default_rng(0).normal(size=(5, 8))  # float64.
  np.save(tmp_path / 'source.npy', values)
  names = ['source.npy', FORMATS[first], f'second_{FORMATS[second]}']
  for source, target, kind in zip(
      names, names[1:], (first, second), strict=False):
    assert convert_prompt.main([
        f'--input={tmp_path / source}', f'--output={tmp_path / target}',
        f'--format={kind}']) == 0
  np.testing.assert_array_equal(
      prompt_files.read(tmp_path / names[-1]), values.astype(np.float32),
      strict=True)
  said = capsys.readouterr().out
  norms = np.linalg.norm(values, axis=1)
  assert f'float32[5, 8], norms of its rows {norms.min():.1f} to' in said
  assert ('note: it does not say which model' in said) == (
      'artifact' in (first, second))


def test_a_converted_artifact_keeps_what_it_says(run, tmp_path):
  root, state, prompts = run
  source = root / 'run' / 'numpy_checkpoints' / 'checkpoint_6'
  copy, bound = tmp_path / 'copy', tmp_path / 'bound'
  assert convert_prompt.main([
      f'--input={source}', f'--output={copy}', '--format=artifact']) == 0
  found = prompt_artifacts.read(copy)
  np.testing.assert_array_equal(found.prompt, prompts[6])
  assert found.record == prompt_artifacts.read(
      source / 'encoder.prompt.prompt.prompt.artifact').record
  # What the run fingerprinted on devices is what its checkpoint holds, also
  # where that has another prompt in it.
  base = checkpoints.open_checkpoint(
      checkpoints.find_checkpoint(str(root / 'base')))
  checkpoints.save_t5x_checkpoint(str(tmp_path / 'more'), base | {
      f'target/{PROMPT}': lazy_arrays.of_array(PROMPT, prompts[7])})
  np.save(tmp_path / 'plain.npy', prompts[6])
  assert convert_prompt.main([
      f'--input={tmp_path / "plain.npy"}', f'--output={bound}',
      '--format=artifact', f'--base_checkpoint={tmp_path / "more"}']) == 0
  assert prompt_artifacts.read(bound).record.base == dataclasses.replace(
      found.record.base, path=str(tmp_path / 'more' / 'checkpoint_5'))
  assert not prompt_artifacts.differences(
      prompt_artifacts.read(bound).record, state.frozen, None)


def test_one_array_of_several_is_named(tmp_path):
  np.savez(tmp_path / 'bank.npz', rte=np.ones((3, 4)), sst2=np.zeros((3, 4)))
  assert convert_prompt.main([
      f'--input={tmp_path / "bank.npz"}', '--name=sst2', '--format=numpy',
      f'--output={tmp_path / "sst2.npy"}']) == 0
  np.testing.assert_array_equal(np.load(tmp_path / 'sst2.npy'), 0)


BAD = {
    'no checkpoint': (extract_variable, [
        '--checkpoint_dir=/nowhere', '--variable_path=x', '--output_path=OUT'],
                      'No checkpoint at /nowhere'),
    'no variable': (extract_variable, [
        '--checkpoint_dir=BASE', '--variable_path=mlp/kernal',
        '--output_path=OUT'], "Nearest: 'target/mlp/kernel'"),
    'output there': (extract_variable, [
        '--checkpoint_dir=BASE', '--variable_path=mlp/kernel',
        '--output_path=BASE/checkpoint'], 'is there already'),
    'no rows': (subsample_vocab, [
        '--checkpoint_dir=BASE', '--prompt_length=0', '--output_path=OUT'],
                '--prompt_length is 0'),
    'no table': (subsample_vocab, [
        '--checkpoint_dir=BASE', '--output_path=OUT',
        '--embeddings_path=state/param_states/mlp/kernel/v_row'],
                 'expected a table'),
    'no share': (diff_checkpoints, ['BASE', 'BASE', '--frac=0'], '--frac is'),
    'converted already': (convert_checkpoint, [
        '--checkpoint_dir=BASE', '--output_dir=BASE/..'], 'is there already'),
    'no such step': (recreate_checkpoint, [
        '--model_dir=RUN', '--step=9', '--output_dir=OUT'], r'\[6, 7\]'),
    'into the run': (recreate_checkpoint, [
        '--model_dir=RUN', '--step=6', '--output_dir=RUN'], 'another folder'),
    'other model': (recreate_checkpoint, [
        '--model_dir=RUN', '--step=6', '--output_dir=OUT',
        '--base_checkpoint=BASE/nothing'], 'No checkpoint'),
    'no prompt': (convert_prompt, [
        '--input=/nowhere.npy', '--output=OUT', '--format=peft'],
                  '/nowhere.npy does not exist'),
    'converted prompt there': (convert_prompt, [
        '--input=/nowhere.npy', '--output=BASE', '--format=numpy'],
                               'is there already'),
    'a table of bytes': (convert_prompt, [
        '--input=BASE/checkpoint', '--output=OUT', '--format=artifact'],
                         'is no numpy file'),
    'no base': (convert_prompt, [
        '--input=RUN/numpy_checkpoints/checkpoint_6', '--output=OUT',
        '--format=artifact', '--base_checkpoint=/nowhere'], 'No checkpoint'),
    "a run's own save as base": (convert_prompt, [
        '--input=RUN/numpy_checkpoints/checkpoint_6', '--output=OUT',
        '--format=artifact', '--base_checkpoint=RUN'],
                                 r'run/checkpoint_7 is .* that part only.*'
                                 r'--base_checkpoint: .*base/checkpoint_5'),
    'only a prompt as base': (convert_prompt, [
        '--input=RUN/numpy_checkpoints/checkpoint_6', '--output=OUT',
        '--format=artifact', '--base_checkpoint=ONLY'], 'besides prompts'),
    'words without words': (inspect_prompt, [
        'BASE', '--checkpoint_dir=BASE', '--labels', 'yes'], 'give both'),
    'no vocabulary': (inspect_prompt, [
        'BASE', '--checkpoint_dir=BASE', '--vocabulary=BASE/none'],
                      'no SentencePiece model'),
    'no prompt to inspect': (inspect_prompt, [
        'BASE', '--checkpoint_dir=BASE'], 'BASE|prompt'),
    'no module': (find_module, ['no_such_module'], 'There is no module'),
    'no package': (find_module, ['no_such.module'], 'There is no module'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line_and_writes_nothing(
    case, checkpoint, run, tmp_path, capsys):
  tool, arguments, match = BAD[case]
  words = {'BASE': checkpoint, 'OUT': str(tmp_path / 'out'),
           'RUN': str(run[0] / 'run'), 'ONLY': str(run[0] / 'only')}
  for word, path in words.items():
    arguments = [argument.replace(word, path) for argument in arguments]
  before = sorted(tmp_path.rglob('*')), sorted(run[0].rglob('*'))
  assert tool.main(arguments) == 2
  captured = capsys.readouterr()
  assert captured.out == '' and captured.err.count('\n') == 1
  assert re.search(match, captured.err) and captured.err.startswith('error: ')
  assert (sorted(tmp_path.rglob('*')), sorted(run[0].rglob('*'))) == before


@pytest.mark.slow
@pytest.mark.parametrize('module', [
    't5x.scripts.convert_checkpoint',
    *(f'prompt_tuning.scripts.{name}' for name in (
        'extract_variable', 'subsample_vocab', 'diff_checkpoints',
        'recreate_checkpoint', 'find_module', 'convert_prompt'))])
def test_tools_run_as_modules(module):
  done = subprocess.run(
      [sys.executable, '-m', module, '--help'], capture_output=True, text=True,
      check=True, cwd=pathlib.Path(__file__).parents[2])
  assert done.stdout.startswith(f'usage: python -m {module}')
