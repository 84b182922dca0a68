"""Learning curves of one target task from several starts: table, plot, page."""

import base64
from collections.abc import Mapping, Sequence
import csv
import dataclasses
import html
import io
import json
import math
import pathlib
import statistics

import matplotlib
import matplotlib.figure
import rich.box
import rich.table

# Readable on white and on near-black, and told apart without colour vision:
# Okabe and Ito's palette.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_DARK = {'ink': '#e6e6e6', 'paper': '#16181c', 'grid': '#3a3d44'}
_LIGHT = {'ink': '#1a1a1a', 'paper': '#ffffff', 'grid': '#d9d9d9'}


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run.

  Attributes:
    start: what its prompt started as.
    seed: its seed.
    curve: from step, counted from its first, to the metric in percent.
  """

  start: str
  seed: int
  curve: Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Cell:
  """Runs of one start at one step.

  Attributes:
    mean: of the metric over seeds.
    deviation: sample standard deviation over seeds.
    count: number of seeds.
  """

  mean: float
  deviation: float
  count: int

  @property
  def standard_error(self) -> float:
    """Of the mean."""
    return self.deviation / math.sqrt(self.count)

  def __str__(self) -> str:
    return f'{self.mean:.1f} ± {self.deviation:.1f}'


def read_curve(
    metrics_file: pathlib.Path, metric: str, first_step: int
) -> dict[int, float]:
  """A curve from the `<task>-metrics.jsonl` that evaluation writes.

  Args:
    metrics_file: one JSON object per evaluation.
    metric: its field.
    first_step: absolute step that becomes 0.

  Returns:
    From step to metric.
  """
  rows = [json.loads(line) for line in metrics_file.read_text().splitlines()]
  return {row['step'] - first_step: float(row[metric]) for row in rows}


def cells(runs: Sequence[Run]) -> dict[str, dict[int, Cell]]:
  """Means over seeds, by start and step; starts keep their order.

  Raises:
    ValueError: if the runs of a start were not evaluated at the same steps.
  """
  by_start: dict[str, list[Run]] = {}
  for run in runs:
    by_start.setdefault(run.start, []).append(run)
  table = {}
  for start, group in by_start.items():
    steps = list(group[0].curve)
    if any(list(run.curve) != steps for run in group):
      raise ValueError(f'The runs from {start} have different steps.')
    table[start] = {
        step: _cell([run.curve[step] for run in group]) for step in steps}
  return table


def _cell(values: Sequence[float]) -> Cell:
  """Mean and deviation of some seeds."""
  deviation = statistics.stdev(values) if len(values) > 1 else 0.0
  return Cell(statistics.mean(values), deviation, len(values))


def gain_in_standard_errors(better: Cell, worse: Cell) -> float:
  """`(mean - mean) / sqrt(se^2 + se^2)`; infinite if nothing varies."""
  error = math.hypot(better.standard_error, worse.standard_error)
  difference = better.mean - worse.mean
  return difference / error if error else math.copysign(math.inf, difference)


def shown_steps(table: Mapping[str, Mapping[int, Cell]]) -> list[int]:
  """A few steps for a table: early, middle and last, without the start."""
  steps = sorted({step for row in table.values() for step in row} - {0})
  picks = [steps[0], *(s for s in steps if s * 8 in (steps[-1], steps[-1] * 2)),
           *(s for s in steps if s * 2 == steps[-1]), steps[-1]]
  return sorted(set(picks))


def text_table(
    table: Mapping[str, Mapping[int, Cell]], title: str) -> rich.table.Table:
  """For the terminal."""
  steps = shown_steps(table)
  shown = rich.table.Table(
      title=title, box=rich.box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
  shown.add_column('prompt starts as', no_wrap=True)
  for step in steps:
    shown.add_column(f'{step} steps', justify='right', no_wrap=True)
  for start, row in table.items():
    shown.add_row(start, *(str(row[step]) for step in steps))
  return shown


def figure(
    table: Mapping[str, Mapping[int, Cell]],
    title: str,
    metric: str,
    look: Mapping[str, str],
) -> matplotlib.figure.Figure:
  """Mean curves with one standard deviation as a band.

  Args:
    table: from `cells`.
    title: of the plot.
    metric: label of the vertical axis.
    look: colours of ink, paper and grid.

  Returns:
    A figure of its own, outside matplotlib's global state.
  """
  drawing = matplotlib.figure.Figure(
      figsize=(8, 4.8), facecolor=look['paper'], layout='constrained')
  axes = drawing.subplots()
  axes.set_facecolor(look['paper'])
  for colour, (start, row) in zip(_COLOURS, table.items(), strict=False):
    steps = list(row)
    mean = [row[s].mean for s in steps]
    low = [row[s].mean - row[s].deviation for s in steps]
    high = [row[s].mean + row[s].deviation for s in steps]
    axes.plot(steps, mean, color=colour, label=start, linewidth=2)
    axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
  axes.set_title(title, color=look['ink'], loc='left')
  axes.set_xlabel('training steps on the target', color=look['ink'])
  axes.set_ylabel(metric, color=look['ink'])
  axes.tick_params(colors=look['ink'])
  axes.grid(color=look['grid'], linewidth=0.6)
  axes.set_ylim(bottom=0)
  for spine in axes.spines.values():
    spine.set_color(look['grid'])
  axes.legend(frameon=False, labelcolor=look['ink'], loc='lower right')
  return drawing


def _png(drawing: matplotlib.figure.Figure) -> bytes:
  """The figure as PNG."""
  buffer = io.BytesIO()
  drawing.savefig(buffer, format='png', dpi=150)
  return buffer.getvalue()


def write(
    folder: pathlib.Path,
    runs: Sequence[Run],
    *,
    title: str,
    metric: str,
    sentences: Sequence[str],
    commands: Sequence[str],
) -> pathlib.Path:
  """Writes `curves.csv`, `curves.png` and a self-contained `report.html`.

  Args:
    folder: made if it is not there.
    runs: the runs.
    title: of plot and page.
    metric: label of the metric, with its unit.
    sentences: what came out, for the top of the page.
    commands: the commands that were run.

  Returns:
    The page.
  """
  folder.mkdir(parents=True, exist_ok=True)
  table = cells(runs)
  with (folder / 'curves.csv').open('w', newline='') as file:
    rows = csv.writer(file)
    rows.writerow(['start', 'seed', 'step', metric])
    rows.writerows(
        [run.start, run.seed, step, value]
        for run in runs for step, value in run.curve.items())
  light, dark = (_png(figure(table, title, metric, look))
                 for look in (_LIGHT, _DARK))
  (folder / 'curves.png').write_bytes(light)
  page = folder / 'report.html'
  page.write_text(_page(table, title, sentences, commands, light, dark))
  return page


def _page(
    table: Mapping[str, Mapping[int, Cell]],
    title: str,
    sentences: Sequence[str],
    commands: Sequence[str],
    light: bytes,
    dark: bytes,
) -> str:
  """The page; it asks for nothing outside itself."""
  steps = shown_steps(table)
  head = ''.join(f'<th>after {step} steps</th>' for step in steps)
  body = ''.join(
      f'<tr><th scope="row">{html.escape(start)}</th>'
      + ''.join(f'<td>{row[step]}</td>' for step in steps) + '</tr>\n'
      for start, row in table.items())
  said = ''.join(f'<p>{html.escape(s)}</p>\n' for s in sentences)
  listing = html.escape('\n\n'.join(commands))
  images = {name: 'data:image/png;base64,' + base64.b64encode(png).decode()
            for name, png in (('light', light), ('dark', dark))}
  return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem;
  color: light-dark({_LIGHT['ink']}, {_DARK['ink']});
  background: light-dark({_LIGHT['paper']}, {_DARK['paper']}); }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .8rem; text-align: right;
  border-bottom: 1px solid light-dark({_LIGHT['grid']}, {_DARK['grid']}); }}
th[scope=row] {{ text-align: left; font-weight: normal; }}
img {{ max-width: 100%; }}
pre {{ overflow-x: auto; font-size: 13px; }}
</style>
<h1>{html.escape(title)}</h1>
{said}
<table>
<thead><tr><th scope="row">prompt starts as</th>{head}</tr></thead>
<tbody>
{body}</tbody>
</table>
<picture>
<source media="(prefers-color-scheme: dark)" srcset="{images['dark']}">
<img alt="Learning curves: mean over seeds, one standard deviation as a band"
  src="{images['light']}">
</picture>
<h2>Commands</h2>
<pre>{listing}</pre>
</html>
"""
