"""The main job in one command: `python -m prompt_tuning.demo`.

Trains a prompt on a source task, starts a target task of few examples from it,
and shows the gain over other starts. Every run is a `t5x.train` command line
that is printed and can be repeated alone.
"""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
import shlex
import time

from absl import app
from absl import flags
from absl import logging
import jax
from prompt_tuning.demo import files
from prompt_tuning.demo import tasks
from prompt_tuning.spot import report
import rich.console
from t5x import checkpoints
from t5x import program
from t5x import train

_OUTPUT = flags.DEFINE_string(
    'output', 'demo_output', 'Folder for runs and report.')
_TARGET = flags.DEFINE_enum(
    'target', tasks.TARGETS[0].name, [task.name for task in tasks.TARGETS],
    'The target task.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Runs per start.')
_SOURCE_STEPS = flags.DEFINE_integer(
    'source_steps', 100, 'Steps on a source task.')
_TARGET_STEPS = flags.DEFINE_integer(
    'target_steps', 16, 'Steps on the target task.')


@dataclasses.dataclass(frozen=True)
class Command:
  """A training run as its command line.

  Attributes:
    model_dir: the run's folder.
    arguments: what follows `python -m t5x.train`.
  """

  model_dir: pathlib.Path
  arguments: tuple[str, ...]

  def __str__(self) -> str:
    lines = ' \\\n    '.join(shlex.quote(a) for a in self.arguments)
    return f'python -m t5x.train \\\n    {lines}'


def command(
    folder: pathlib.Path, task: str, start: Sequence[str], *,
    steps: int, eval_period: int, seed: int,
) -> Command:
  """The command of one run.

  Args:
    folder: the run's folder.
    task: SeqIO task.
    start: gin file of the prompt's initialiser and its macros.
    steps: training steps, counted from the frozen model's step.
    eval_period: steps between evaluations on the test split.
    seed: of the run.

  Returns:
    The command.
  """
  initialiser = [a for a in start if a.startswith('--gin_file')]
  macros = [a for a in start if not a.startswith('--gin_file')]
  return Command(folder, (
      '--gin_file=models/demo_prompt.gin',
      *initialiser,
      '--gin_file=runs/demo_finetune.gin',
      *macros,
      f'--gin.MIXTURE_OR_TASK_NAME={task}',
      f'--gin.MODEL_DIR={folder}',
      f'--gin.TRAIN_STEPS_RELATIVE={steps}',
      f'--gin.EVAL_PERIOD={eval_period}',
      f'--gin.RANDOM_SEED={seed}',
  ))


def prompt_file(run: Command) -> pathlib.Path:
  """The prompt that a finished run ended with."""
  step = checkpoints.latest_step(str(run.model_dir))
  return (run.model_dir / 'numpy_checkpoints' / f'checkpoint_{step}'
          / 'encoder.prompt.prompt.prompt')


class Demo:
  """Runs commands in this process, so that libraries are imported once."""

  def __init__(self, output: pathlib.Path, console: rich.console.Console):
    """Keeps compiled programs in the output folder.

    Args:
      output: folder for runs and report.
      console: where to say what is done.
    """
    self.output = output
    self.commands: list[str] = []
    self._console = console
    jax.config.update(
        'jax_compilation_cache_dir', str(output / 'compilation_cache'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)

  def run(self, what: str, wanted: Command) -> Command:
    """Runs a command, or finds that it has been run."""
    self._console.rule(what, align='left')
    self._console.print(str(wanted), markup=False, highlight=False)
    self.commands.append(f'# {what}\n{wanted}')
    program.run_command(train.train, wanted.arguments)
    return wanted

  def source(self, name: str, steps: int) -> pathlib.Path:
    """Trains a prompt on a source task; returns its file."""
    return prompt_file(self.run(f'source: {name}', command(
        self.output / f'source_{name}', name,
        ['--gin_file=prompts/from_sampled_vocab.gin'],
        steps=steps, eval_period=steps, seed=0)))

  def target(
      self, task: tasks.DemoTask, start: str, arguments: Sequence[str], *,
      steps: int, seed: int,
  ) -> report.Run:
    """Trains a prompt on the target task; returns its learning curve."""
    slug = start.replace(' ', '_').replace(':', '')
    done = self.run(f'target: {task.name}, {start}, seed {seed}', command(
        self.output / f'target_{slug}_{seed}', task.name, arguments,
        steps=steps, eval_period=max(steps // 8, 1), seed=seed))
    first = checkpoints.Save(checkpoints.get_checkpoint_dir(
        str(done.model_dir),
        checkpoints.latest_step(str(done.model_dir)) or 0)).record.first_step
    curve = report.read_curve(
        done.model_dir / 'inference_eval' / f'{task.name}-metrics.jsonl',
        'accuracy', first)
    return report.Run(start, seed, curve)


def _certainty(better: report.Cell, worse: report.Cell) -> str:
  """How much a difference is worth, in words."""
  if better.count < 2:
    return 'one seed says nothing of chance'
  errors = report.gain_in_standard_errors(better, worse)
  return (f'{errors:.1f} standard errors' if math.isfinite(errors)
          else 'the seeds do not differ')


def sentences(
    task: tasks.DemoTask, runs: Sequence[report.Run], seconds: float
) -> list[str]:
  """What came out, in words; nothing is said that the figures do not."""
  table = report.cells(runs)
  related = f'SPoT: {task.related}'
  last = max(table[related])
  found = []
  for other in table:
    if other == related:
      continue
    early = report.shown_steps(table)[0]
    for step in (early, last):
      better, worse = table[related][step], table[other][step]
      found.append(
          f'After {step} steps, {related} is {better.mean - worse.mean:+.1f} '
          f'points against {other}: {_certainty(better, worse)}.')
  found.append(f'Everything took {seconds:.0f} seconds.')
  return found


def main(argv: Sequence[str]) -> None:
  """Runs the demo."""
  del argv
  logging.set_verbosity(logging.WARNING)
  console = rich.console.Console(highlight=False, soft_wrap=True)
  began = time.monotonic()
  output = pathlib.Path(_OUTPUT.value)
  demo = Demo(output, console)
  task = next(t for t in tasks.TARGETS if t.name == _TARGET.value)
  starts = {
      'random': [],  # The model file's own: uniform.
      'class labels': ['--gin_file=prompts/from_class_labels.gin',
                       f'--gin.CLASS_LABELS={list(task.labels)}'],
  }
  for source in (task.related, task.unrelated):
    prompt = demo.source(source, _SOURCE_STEPS.value)
    starts[f'SPoT: {source}'] = ['--gin_file=prompts/from_file.gin',
                                 f'--gin.PROMPT_FILE={prompt}']
  runs = [
      demo.target(task, start, arguments, steps=_TARGET_STEPS.value, seed=seed)
      for start, arguments in starts.items() for seed in range(_SEEDS.value)
  ]
  said = sentences(task, runs, time.monotonic() - began)
  title = (f'{task.name}: {task.train_size} training examples, '
           f'{_SEEDS.value} seeds')
  page = report.write(
      output, runs, title=title, metric='test accuracy, %', sentences=said,
      commands=demo.commands)
  console.print(report.text_table(
      report.cells(runs), f'test accuracy, %, mean ± deviation\n{title}'))
  for sentence in said:
    console.print(sentence)
  console.print(f'frozen model: {files.checkpoint()}')
  console.print(f'report: {page}')


if __name__ == '__main__':
  app.run(main)
