"""Files of inference: killed anywhere and started again, they are the same."""

import json
import pathlib
import subprocess
import sys
import textwrap

import pytest
from t5x import inference_files

ROOT = pathlib.Path(__file__).parents[2]
CHUNKS = 3

# Writes a shard of three chunks. In a child, SIGKILL comes at the n-th thing
# that it does with a file, for every n; then it is run again without.
DRIVER = textwrap.dedent('''
    import os, pathlib, signal, sys
    from t5x import inference_files

    EVENTS = ('open', 'os.rename', 'os.remove', 'os.rmdir', 'os.mkdir',
              'shutil.rmtree')

    def write(path, number):
      with open(path, 'w') as file:
        for row in range(4):
          file.write(f'{{"row": {4 * number + row}}}\\n')
          file.flush()

    def shard(folder):
      files = inference_files.ShardFiles(folder, 'task', 'predict', 1, 2)
      files.require_same({'batch_size': 4})
      if files.finished():
        files.remove_chunks()
        return
      files.begin({'batch_size': 4})
      for number in range(files.next_chunk(), 3):
        files.write_chunk(number, lambda path: write(path, number))
      files.finish(inference_files.merge_chunks_to_file, 0, True)

    def killed_at(count, folder):
      """Whether the child was killed before it was done."""
      child = os.fork()
      if not child:
        left = [count]
        def hook(event, args):
          # Removing a tree names files below an open folder.
          if event in EVENTS and (
              event != 'open' or str(folder) in str(args[0])):
            left[0] -= 1
            if not left[0]:
              os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        shard(folder)
        os._exit(0)
      _, status = os.waitpid(child, 0)
      return os.WIFSIGNALED(status)

    top, count = pathlib.Path(sys.argv[1]), 1
    while killed_at(count, str(top / f'{count:03}')):
      shard(str(top / f'{count:03}'))
      count += 1
    print(count)
''')


def test_killed_at_every_operation_and_run_again_equals_unbroken(tmp_path):
  # A process of its own, without JAX's threads, so that it can fork.
  out = subprocess.run(
      [sys.executable, '-c', DRIVER, str(tmp_path)], cwd=ROOT, check=True,
      text=True, stdout=subprocess.PIPE, timeout=120)
  assert int(out.stdout) > 30
  contents = set()
  for folder in tmp_path.iterdir():
    names = {path.name for path in folder.iterdir()}
    output = 'task-predict.jsonl-00001-of-00002'
    assert names == {output, f'{output}.COMPLETED', f'{output}.record.json'}
    contents.add((folder / output).read_bytes())
  assert contents == {b''.join(b'{"row": %d}\n' % i for i in range(12))}


def _files(folder, **options):
  return inference_files.ShardFiles(
      **{'output_dir': str(folder), 'task': 'task', 'mode': 'predict',
         'shard_id': 0, 'num_shards': 1} | options)


def _write(files, *numbers):
  for number in numbers:
    files.write_chunk(
        number, lambda path, n=number: pathlib.Path(path).write_text(f'{n}\n'))


def test_names_are_those_of_t5x(tmp_path):
  files = _files(tmp_path, shard_id=3, num_shards=12)
  files.begin({})
  _write(files, 0, 1)
  name = 'task-predict.jsonl-00003-of-00012'
  assert {p.name for p in (tmp_path / 'tmp-task-00003-of-00012').iterdir()} == {
      f'{name}-chunk00000', f'{name}-chunk00000.COMPLETED',
      f'{name}-chunk00001', f'{name}-chunk00001.COMPLETED'}
  files.finish(inference_files.merge_chunks_to_file, 0, True)
  assert (tmp_path / name).read_text() == '0\n1\n'
  assert (tmp_path / f'{name}.COMPLETED').read_bytes() == b''
  assert not (tmp_path / 'tmp-task-00003-of-00012').exists()
  assert files.finished()


def test_without_merging_the_chunks_stay(tmp_path):
  files = _files(tmp_path)
  files.begin({})
  _write(files, 0)
  files.finish(inference_files.merge_chunks_to_file, 0, False)
  assert not files.finished()
  assert files.next_chunk() == 1
  assert pathlib.Path(files.tmp_dir).is_dir()


CONFIGURATION = {'mode': 'predict', 'batch_size': 8, 'labels': ('a', 'b')}


@pytest.mark.parametrize('finished', [False, True])
@pytest.mark.parametrize('name', CONFIGURATION)
def test_another_configuration_is_refused(tmp_path, name, finished):
  files = _files(tmp_path)
  files.begin(CONFIGURATION)
  _write(files, 0)
  if finished:
    files.finish(inference_files.merge_chunks_to_file, 0, True)
  files.require_same(CONFIGURATION)
  files.require_same({'mode': 'predict'})
  with pytest.raises(inference_files.InferenceError,
                     match=rf'another {name}.*INFER_OUTPUT_DIR') as caught:
    files.require_same(CONFIGURATION | {name: 'x'})
  assert '\n' not in str(caught.value)


def test_where_there_are_no_rows_any_configuration_may_begin(tmp_path):
  files = _files(tmp_path)
  files.begin(CONFIGURATION)  # And killed before its first chunk was whole.
  other = CONFIGURATION | {'batch_size': 16}
  files.require_same(other)
  files.begin(other)
  _write(files, 0)
  with pytest.raises(inference_files.InferenceError, match='batch_size'):
    files.require_same(CONFIGURATION)


def test_chunks_that_nothing_vouches_for_are_refused(tmp_path):
  files = _files(tmp_path)
  files.begin(CONFIGURATION)
  _write(files, 0)
  record = tmp_path / f'{files.output_name}.record.json'
  record.write_text('{"mode": ')
  with pytest.raises(inference_files.InferenceError, match='damaged'):
    files.require_same(CONFIGURATION)
  record.unlink()
  with pytest.raises(inference_files.InferenceError, match='not there'):
    files.require_same(CONFIGURATION)


def test_a_missing_chunk_is_never_merged_over(tmp_path):
  files = _files(tmp_path)
  files.begin({})
  _write(files, 0, 1, 2)
  (pathlib.Path(files.tmp_dir) / f'{files.output_name}-chunk00001').unlink()
  with pytest.raises(inference_files.InferenceError, match='00002'):
    files.finish(inference_files.merge_chunks_to_file, 0, True)
  assert not pathlib.Path(files.output_path).exists()
  assert files.next_chunk() == 1  # It and what follows is made again.


def test_the_record_is_readable(tmp_path):
  files = _files(tmp_path)
  files.begin(CONFIGURATION)
  record = json.loads(
      (tmp_path / f'{files.output_name}.record.json').read_text())
  assert record['batch_size'] == 8


def test_a_full_disk_is_explained_and_loses_nothing(tmp_path):
  files = _files(tmp_path)
  files.begin({})
  _write(files, 0)

  def full(path):
    pathlib.Path(path).write_text('half')
    raise OSError(28, 'No space left on device')

  with pytest.raises(inference_files.InferenceError, match='No space left'):
    files.write_chunk(1, full)
  assert files.next_chunk() == 1
