"""Writes published_tasks.tsv: what is known of every published task.

    python tests/golden/make_published_tasks.py \
        ../shared/reference/prompt_tuning_registry.tsv

The table that it reads was made from the published code by listing SeqIO's
registries. It names functions; those that are wrappers there stand here under
the name of what they compute, and ranking under the name that it has with us:
tests/prompt_tuning/data/published_test.py describes our tasks in the same way.
"""

import ast
import pathlib
import re
import sys

COLUMNS = ('module', 'kind', 'name', 'tfds', 'splits',
           'preprocessors_or_members', 'postprocess', 'metrics')
# Wrappers by the name of the dataset, then of the wrapper.
_WRAPPED = {'cola': {'fn': 'matthews_corrcoef'},
            'cb': {'fn': 'mean_f1'},
            'multirc': {'my_metric': 'multirc_exact_match'},
            'record': {'_deduplicated_metric': 'record'}}
_RANKED = re.compile(
    r'rank_classification\(inputs_fn=get_inputs'
    r'(?:\(labels=(?P<labels>[\[(].*?[\])])\))?,.*?'
    r'(?:is_correct_fn=get_correct(?:\(labels=[\[(].*?[\])]\))?)'
    r'(?:,mode=(?P<mode>\w+))?\)')


def _ranking(match: re.Match) -> str:
  mode = f'mode={match["mode"] or "eval"}'
  if match['labels'] is None:
    return 'rank_entities'
  return f'rank_labels(labels={match["labels"]},{mode})'


def plain(text: str) -> str:
  """One spelling: no quotes, lists as a|b, nothing that is None."""
  text = _RANKED.sub(_ranking, text)
  text = text.replace("'", '')
  text = re.sub(r',?\w+=None', '', text).replace('(,', '(')
  # Lists in either kind of bracket are values of keywords.
  return re.sub(
      r'=[\[(]([^\[\]()]*)[\])]',
      lambda m: '=' + m[1].replace(', ', '|'), text)


def compact(row: dict[str, str]) -> list[str]:
  """The columns of a row."""
  title = re.sub(r'.*/|:.*', '', row['tfds'])
  metrics = ', '.join(map(plain, ast.literal_eval(row['metrics'] or '[]')))
  for old, new in _WRAPPED.get(title, {}).items():
    metrics = re.sub(rf'\b{old}\b', new, metrics)
  if row['kind'] == 'mixture':
    members = ast.literal_eval(row['preprocessors_or_members'])
    chain = ', '.join(f'{k}={v:g}' for k, v in sorted(members.items()))
  else:
    chain = plain(row['preprocessors_or_members'][1:-1])
  splits = ast.literal_eval(row['splits'] or 'None') or {}
  return [row['module'], row['kind'], row['name'], row['tfds'],
          ', '.join(f'{k}={v}' for k, v in splits.items()), chain,
          plain(row['postprocess']), metrics]


def convert(table: str) -> str:
  """The golden file from the table."""
  header, *lines = table.splitlines()
  names = header.split('\t')
  rows = [dict(zip(names, line.split('\t'), strict=True)) for line in lines]
  return ''.join('\t'.join(columns) + '\n' for columns in
                 [list(COLUMNS), *map(compact, rows)])


if __name__ == '__main__':
  pathlib.Path(__file__).with_name('published_tasks.tsv').write_text(
      convert(pathlib.Path(sys.argv[1]).read_text()))
