"""Where figures go: TensorBoard events, JSON lines, the terminal.

Writers take plain numbers and know nothing of arrays, so they run without
TensorFlow and without a device.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import pathlib
import time
from typing import Protocol

from etils import epath
import rich.console
import rich.progress
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto import summary_pb2
from tensorboard.summary.writer import event_file_writer

Scalars = Mapping[str, float]


class MetricWriter(Protocol):
  """Takes named numbers at a step."""

  def write(self, step: int, scalars: Scalars) -> None:
    """Writes them."""

  def close(self) -> None:
    """Flushes; nothing may be written afterwards."""


class TensorBoardWriter:
  """Event files that TensorBoard reads."""

  def __init__(self, directory: str, resume_step: int | None = None):
    """Opens a new event file.

    Args:
      directory: made if it is not there.
      resume_step: hides what an interrupted run wrote after this step.
    """
    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    self._writer = event_file_writer.EventFileWriter(directory)
    if resume_step is not None:
      session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._writer.add_event(event_pb2.Event(
          wall_time=time.time(), step=resume_step + 1, session_log=session))

  def write(self, step: int, scalars: Scalars) -> None:
    """See `MetricWriter`."""
    values = [summary_pb2.Summary.Value(tag=name, simple_value=value)
              for name, value in scalars.items()]
    self._writer.add_event(event_pb2.Event(
        wall_time=time.time(), step=step,
        summary=summary_pb2.Summary(value=values)))
    self._writer.flush()

  def close(self) -> None:
    """See `MetricWriter`."""
    self._writer.close()


class JsonlWriter:
  """One JSON object per line: the step and the numbers."""

  def __init__(self, path: str, resume_step: int | None = None):
    """Nothing is written yet.

    Args:
      path: the file; its folder is made if it is not there.
      resume_step: drops what an interrupted run wrote after this step.
    """
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    if resume_step is not None:
      drop_rows_after(path, resume_step)
    self._path = path

  def write(self, step: int, scalars: Scalars) -> None:
    """See `MetricWriter`."""
    with open(self._path, 'a', encoding='utf-8') as file:
      file.write(json.dumps({'step': step, **scalars}) + '\n')

  def close(self) -> None:
    """Does nothing: a row is in the file once it is written."""


def drop_rows_after(path: str, step: int) -> None:
  """Removes the rows of a later step, and a last row that was cut off."""
  _keep_rows(path, lambda found: found <= step)


def _keep_rows(path: str, wanted: Callable[[int], bool]) -> None:
  """Keeps the rows of wanted steps, up to one that was cut off."""
  file = epath.Path(path)
  if not file.exists():
    return
  kept = []
  for line in file.read_text().splitlines():
    try:
      if wanted(json.loads(line)['step']):
        kept.append(line)
    except ValueError:
      break
  replacement = file.parent / f'{file.name}.tmp'
  replacement.write_text(''.join(f'{line}\n' for line in kept))
  replacement.replace(file)


class Terminal:
  """Progress on a terminal, plain lines anywhere else."""

  # What is shown, in this order, and how it is labelled.
  COLUMNS = (('loss', 'loss'), ('accuracy', 'accuracy'),
             ('timing/steps_per_second', 'steps/s'), ('change_norm', 'moved'))

  def __init__(
      self, first_step: int, total_steps: int,
      console: rich.console.Console | None = None,
  ):
    """Shows nothing yet.

    Args:
      first_step: absolute step at which the bar begins.
      total_steps: absolute step at which it is full.
      console: where to; standard output by default.
    """
    self._console = console or rich.console.Console(
        highlight=False, soft_wrap=True)
    self._first_step = first_step
    self._total_steps = total_steps
    self._bar: rich.progress.Progress | None = None

  def _show_bar(self) -> None:
    """Begins the bar; whoever writes figures also closes."""
    self._bar = rich.progress.Progress(
        rich.progress.BarColumn(), '{task.completed:,} / {task.total:,}',
        rich.progress.TimeRemainingColumn(), '{task.fields[figures]}',
        console=self._console)
    self._task = self._bar.add_task(
        'train', total=self._total_steps, completed=self._first_step,
        figures='')
    self._bar.start()

  def write(self, step: int, scalars: Scalars) -> None:
    """See `MetricWriter`."""
    figures = '  '.join(
        f'{label} {scalars[name]:.4g}'
        for name, label in self.COLUMNS if name in scalars)
    if self._bar is None and self._console.is_terminal:
      self._show_bar()
    if self._bar is not None:
      self._bar.update(self._task, completed=step, figures=figures)
      return
    rate = scalars.get('timing/steps_per_second', 0.0)
    if rate:
      left = int((self._total_steps - step) / rate)
      figures += f'  left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}'
    self.say(f'step {step:,} of {self._total_steps:,}  {figures}')

  def say(self, text: str) -> None:
    """A line of text, above the bar if there is one."""
    self._console.print(text, markup=False)

  def close(self) -> None:
    """See `MetricWriter`."""
    if self._bar is not None:
      self._bar.stop()


class Writers:
  """Several writers as one."""

  def __init__(self, writers: Sequence[MetricWriter]):
    self._writers = writers

  def write(self, step: int, scalars: Scalars) -> None:
    """See `MetricWriter`."""
    for writer in self._writers:
      writer.write(step, scalars)

  def close(self) -> None:
    """Does nothing: whoever opened the writers closes them."""


class RunFolder:
  """The figures of a run: who writes them, and where."""

  def __init__(
      self,
      directory: str,
      terminal: Terminal,
      *,
      resume_step: int | None = None,
      silent: bool = False,
  ):
    """Nothing is written yet.

    Args:
      directory: the run's folder.
      terminal: for lines of text and for the training figures.
      resume_step: the step at which an interrupted run goes on; what it wrote
        of later steps is dropped.
      silent: write nothing, on all processes but the first.
    """
    self.directory = directory
    self.terminal = terminal
    self._resume_step = resume_step
    self._silent = silent
    self._open: list[MetricWriter] = [terminal]

  def writers(self, name: str, *more: MetricWriter) -> Writers:
    """Event files and `metrics.jsonl` in a folder, and further writers."""
    if self._silent:
      return Writers([])
    folder = f'{self.directory}/{name}'
    files: list[MetricWriter] = [
        TensorBoardWriter(folder, self._resume_step),
        JsonlWriter(f'{folder}/metrics.jsonl', self._resume_step)]
    self._open += files
    return Writers([*files, *more])

  def drop_rows(self, pattern: str) -> None:
    """Removes rows that an interrupted run wrote after its last save."""
    if self._resume_step is None or self._silent:
      return
    for path in epath.Path(self.directory).glob(pattern):
      drop_rows_after(str(path), self._resume_step)

  def drop_step(self, pattern: str, step: int) -> None:
    """Removes the rows of one step, which is evaluated again."""
    if not self._silent:
      for path in epath.Path(self.directory).glob(pattern):
        _keep_rows(str(path), lambda found: found != step)

  def write_text(self, name: str, text: str) -> None:
    """A text file in the run's folder."""
    if not self._silent:
      folder = epath.Path(self.directory)
      folder.mkdir(parents=True, exist_ok=True)
      (folder / name).write_text(text)

  def say(self, *lines: str) -> None:
    """Lines on the terminal."""
    if not self._silent:
      for line in lines:
        self.terminal.say(line)

  def close(self) -> None:
    """Closes every writer and the terminal."""
    for writer in self._open:
      writer.close()
