"""Rows of text files, and an error with file and line for what is not one.

    .txt      a text per line, the column `inputs`
    .jsonl    a JSON object per line
    .csv      columns under a line of names, quoted as spreadsheets do
    .tsv      columns under a line of names; no quoting

A file is data: nothing of it is evaluated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import csv
import dataclasses
import hashlib
import io
import json
import pathlib
from typing import Any

from etils import epath
from t5x import datasets


@dataclasses.dataclass(frozen=True)
class Row:
  """One row.

  Attributes:
    place: file and line, for errors.
    cells: from column to value; a text wherever the format knows only texts.
  """

  place: str
  cells: Mapping[str, Any]

  def text(self, column: str, hint: str) -> str:
    """A cell that must be a text.

    Args:
      column: its column.
      hint: what to do if there is none.

    Raises:
      DatasetError: naming file, line and column.
    """
    value = self.cells.get(column)
    if not isinstance(value, str):
      raise datasets.DatasetError(
          f'{self.place}: expected a text {column!r}, found '
          f'{json.dumps(value)[:40]}; the fields are {sorted(self.cells)}. '
          f'{hint}')
    return value


@dataclasses.dataclass(frozen=True)
class Table:
  """All rows of a file.

  Attributes:
    path: the file.
    rows: its rows, at least one.
    header: the columns of all rows; None where rows have fields of their own.
    identity: SHA-256 of the file.
  """

  path: str
  rows: Sequence[Row]
  header: Sequence[str] | None
  identity: str

  def require_columns(self, names: Sequence[str], hint: str) -> None:
    """Fails if the file names its columns, and not these once each.

    Args:
      names: the columns.
      hint: what to do about it.

    Raises:
      DatasetError: naming the columns that there are.
    """
    for name in names:
      if self.header is not None and self.header.count(name) != 1:
        raise datasets.DatasetError(
            f'{self.path}, line 1: expected one column {name!r}, found the '
            f'columns {list(self.header)}. {hint}')


# From the text of a file and its path to a header and rows.
Parsed = tuple[Sequence[str] | None, Iterator[Row]]
Parser = Callable[[str, str], Parsed]


def _lines(text: str) -> list[str]:
  """Lines without their ends; the last may lack its own."""
  return [line.removesuffix('\r')
          for line in text.removesuffix('\n').split('\n')]


def _parse_text(text: str, path: str) -> Parsed:
  """Every line is a text."""
  return ['inputs'], (Row(f'{path}, line {number}', {'inputs': line})
                      for number, line in enumerate(_lines(text), 1))


def _parse_jsonl(text: str, path: str) -> Parsed:
  """Every line is an object."""
  return None, (_json_row(line, f'{path}, line {number}')
                for number, line in enumerate(_lines(text), 1))


def _json_row(line: str, place: str) -> Row:
  """An object as a row."""
  try:
    found = json.loads(line)
  except (ValueError, RecursionError) as error:
    column = getattr(error, 'colno', 1)
    raise datasets.DatasetError(
        f'{place}, column {column}: no JSON ({getattr(error, "msg", error)}); '
        'expected one object per line.') from error
  if not isinstance(found, dict):
    raise datasets.DatasetError(
        f'{place}: expected a JSON object, found {type(found).__name__}.')
  return Row(place, found)


def _parse_tsv(text: str, path: str) -> Parsed:
  """Cells between tabs, as they stand."""
  header, *rest = (line.split('\t') for line in _lines(text))
  return header, _cells(enumerate(rest, 2), header, path)


def _parse_csv(text: str, path: str) -> Parsed:
  """Cells that may be quoted, and go on over lines then."""
  reader = csv.reader(io.StringIO(text), strict=True)

  def numbered() -> Iterator[tuple[int, list[str]]]:
    line = 1
    try:
      for cells in reader:
        if cells:
          yield line, cells
        line = reader.line_num + 1
    except csv.Error as error:
      raise datasets.DatasetError(
          f'{path}, line {line}: no CSV ({error}).') from error

  rows = numbered()
  _, header = next(rows)
  return header, _cells(rows, header, path)


def _cells(
    numbered: Iterator[tuple[int, list[str]]], header: Sequence[str], path: str
) -> Iterator[Row]:
  """Rows of as many cells as there are columns."""
  for number, cells in numbered:
    place = f'{path}, line {number}'
    if len(cells) != len(header):
      raise datasets.DatasetError(
          f'{place}: {len(cells)} columns, but line 1 names {len(header)}.')
    yield Row(place, dict(zip(header, cells, strict=True)))


_PARSERS: dict[str, Parser] = {
    '.txt': _parse_text, '.jsonl': _parse_jsonl, '.csv': _parse_csv,
    '.tsv': _parse_tsv}


def read(path: str, argument: str) -> Table:
  """Reads a file, all of it.

  Args:
    path: see the module; local or remote.
    argument: what the path was given as, for errors.

  Returns:
    Its rows.

  Raises:
    DatasetError: naming file, line and column of what cannot be used.
  """
  file = epath.Path(path)
  parser = _PARSERS.get(pathlib.PurePath(path).suffix)
  if parser is None:
    raise datasets.DatasetError(
        f'{argument} {path}: expected a name that ends in '
        f'{", ".join(_PARSERS)}.')
  if not file.exists() or file.is_dir():
    raise datasets.DatasetError(
        f'{argument} {path} does not exist or is a folder.')
  content = file.read_bytes()
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    column = error.start - content.rfind(b'\n', 0, error.start)
    raise datasets.DatasetError(
        f'{path}, line {line}, byte {column}: no UTF-8; convert the file.'
    ) from error
  header, rows = parser(text, path) if text.strip() else (None, iter(()))
  found = list(rows)
  if not found:
    raise datasets.DatasetError(f'{path} is empty; expected at least one row.')
  return Table(path, found, header, hashlib.sha256(content).hexdigest())
