"""The files of `t5x.infer`, in T5X's layout, safe against a kill at any moment.

    <task>-<mode>.jsonl-SSSSS-of-NNNNN               the rows of a job shard
    <task>-<mode>.jsonl-SSSSS-of-NNNNN.COMPLETED     empty: they are all there
    <task>-<mode>.jsonl-SSSSS-of-NNNNN.record.json   what made them
    tmp-<task>-SSSSS-of-NNNNN/<the first>-chunkCCCCC, and .COMPLETED of it

A file appears under its name when it is whole, and its marker after it. So what
has a marker can be trusted, and everything else is made again.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import json
import os
import shutil
from typing import Any

from etils import epath

_COMPLETED = '.COMPLETED'


class InferenceError(ValueError):
  """Inference that cannot go on, with the file and the fix."""


def _replace(temporary: epath.Path, final: epath.Path) -> None:
  """Gives a written file its name; after a power cut it is whole or absent."""
  if '://' not in os.fspath(final):
    with open(temporary, 'rb+') as file:
      os.fsync(file.fileno())
  temporary.replace(final)


@contextlib.contextmanager
def _explained(path: Any) -> Iterator[None]:
  """Says what to do when a file cannot be written."""
  try:
    yield
  except OSError as error:
    raise InferenceError(
        f'{path} could not be written ({error}). What was written before is '
        'untouched; see that the disk has space and that the folder can be '
        'written to, and start again to continue.') from error


def merge_chunks_to_file(
    output_dir: str, output_fname: str, tmp_dir: str, step: int | None = None
) -> None:
  """Writes the rows of all chunks, in order, into one file.

  Args:
    output_dir: where the file goes.
    output_fname: its name; a chunk's is this and `-chunkCCCCC`.
    tmp_dir: where the chunks are.
    step: of the checkpoint; for merging functions that want to name it.

  Raises:
    InferenceError: if there is no chunk, or one is missing.
  """
  del step
  chunks = sorted(epath.Path(tmp_dir).glob(f'{output_fname}-chunk?????'))
  names = [f'{output_fname}-chunk{i:05}' for i in range(len(chunks))]
  if not chunks or [chunk.name for chunk in chunks] != names:
    raise InferenceError(
        f'{tmp_dir} holds the chunks {[c.name[-5:] for c in chunks]}; expected '
        'all from 00000 on. Remove the folder to begin again.')
  temporary = epath.Path(tmp_dir) / f'{output_fname}.merging'
  with temporary.open('wb') as merged:
    for chunk in chunks:
      with chunk.open('rb') as file:
        shutil.copyfileobj(file, merged)
  _replace(temporary, epath.Path(output_dir) / output_fname)


@dataclasses.dataclass(frozen=True)
class ShardFiles:
  """The files of one job shard of one task.

  Attributes:
    output_dir: the folder of the whole job.
    task: the task's name.
    mode: what is inferred.
    shard_id: which part of the task.
    num_shards: into how many it is cut.
    extension: of the output.
  """

  output_dir: str
  task: str
  mode: str
  shard_id: int
  num_shards: int
  extension: str = 'jsonl'

  @property
  def _suffix(self) -> str:
    return f'{self.shard_id:05}-of-{self.num_shards:05}'

  @property
  def output_name(self) -> str:
    """Name of the output file."""
    return f'{self.task}-{self.mode}.{self.extension}-{self._suffix}'

  @property
  def output_path(self) -> str:
    """The output file."""
    return f'{self.output_dir}/{self.output_name}'

  @property
  def tmp_dir(self) -> str:
    """The folder of the chunks."""
    return f'{self.output_dir}/tmp-{self.task}-{self._suffix}'

  def require_same(self, configuration: Mapping[str, Any]) -> None:
    """Fails if the shard was begun with another configuration.

    Args:
      configuration: plain values by what they are; those that the record does
        not have, or that are not given, are not compared.

    Raises:
      InferenceError: naming the first difference.
    """
    record = epath.Path(f'{self.output_path}.record.json')
    if not self._chunks() and not self.finished():
      return  # There are no rows that others could be mixed with.
    if not record.exists():
      if self._chunks():
        raise InferenceError(
            f'{self.tmp_dir} holds chunks, but {record} is not there to say '
            'what made them. Remove the folder, or use another '
            'INFER_OUTPUT_DIR.')
      return
    try:
      recorded = dict(json.loads(record.read_text()))
    except (ValueError, TypeError) as error:
      raise InferenceError(
          f'{record} is damaged ({error}). Use another INFER_OUTPUT_DIR, or '
          'remove it with the output and its tmp folder.') from error
    for name, ours in json.loads(json.dumps(configuration)).items():
      if name in recorded and recorded[name] != ours:
        raise InferenceError(
            f'{self.output_path} was begun with another {name} '
            f'({_short(recorded[name])}) than this run has ({_short(ours)}); '
            'its rows are not mixed. Use another INFER_OUTPUT_DIR, or the '
            'configuration that it was begun with.')

  def begin(self, configuration: Mapping[str, Any]) -> None:
    """Records what makes the shard, before its first chunk."""
    folder = epath.Path(self.tmp_dir)
    folder.mkdir(parents=True, exist_ok=True)
    record = epath.Path(f'{self.output_path}.record.json')
    if not self._chunks():
      temporary = folder / record.name
      temporary.write_text(
          json.dumps(configuration, indent=1, sort_keys=True) + '\n')
      _replace(temporary, record)

  def finished(self) -> bool:
    """Whether the output is there and whole."""
    output = epath.Path(self.output_path)
    return output.exists() and epath.Path(f'{output}{_COMPLETED}').exists()

  def _chunk(self, number: int) -> epath.Path:
    """The file of a chunk."""
    return epath.Path(self.tmp_dir) / f'{self.output_name}-chunk{number:05}'

  def _chunks(self) -> int:
    """How many chunks are whole, from the first one on."""
    number = 0
    while (epath.Path(f'{self._chunk(number)}{_COMPLETED}').exists()
           and self._chunk(number).exists()):
      number += 1
    return number

  def next_chunk(self) -> int:
    """The first chunk that is to be made; later ones are thrown away."""
    number = self._chunks()
    for path in epath.Path(self.tmp_dir).glob(f'{self.output_name}-chunk*'):
      if path.name[len(self.output_name) + 6:][:5] >= f'{number:05}':
        path.unlink()
    return number

  def write_chunk(self, number: int, write: Callable[[str], None]) -> None:
    """Writes one chunk.

    Args:
      number: which one.
      write: writes the rows to the path it is given.

    Raises:
      InferenceError: if it could not be written; earlier ones are untouched.
    """
    final = self._chunk(number)
    temporary = final.parent / f'{final.name}.writing'
    with _explained(final):
      write(os.fspath(temporary))
      _replace(temporary, final)
      epath.Path(f'{final}{_COMPLETED}').write_text('')

  def finish(
      self, merge_fn: Callable[..., None], step: int, merge: bool) -> None:
    """Makes the output of the chunks.

    Args:
      merge_fn: as `merge_chunks_to_file`.
      step: of the checkpoint.
      merge: False leaves the chunks as they are.

    Raises:
      InferenceError: if it could not be written; the chunks are still there.
    """
    if merge:
      with _explained(self.output_path):
        merge_fn(self.output_dir, self.output_name, self.tmp_dir, step)
        epath.Path(f'{self.output_path}{_COMPLETED}').write_text('')
      self.remove_chunks()

  def remove_chunks(self) -> None:
    """Removes the folder of the chunks."""
    epath.Path(self.tmp_dir).rmtree(missing_ok=True)


def _short(value: Any) -> str:
  """A value, cut if it is long; sums tell enough by their first digits."""
  text = json.dumps(value)
  return text if len(text) <= 60 else f'{text[:13]}..."'
