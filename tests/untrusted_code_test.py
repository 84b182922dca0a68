"""No file that is read can run code: the package has no call that would let it.

Read from the source, so that it holds for paths that no test takes.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    path for package in ('t5x', 'prompt_tuning', 'configs', 'gin')
    for path in (ROOT / package).rglob('*.py'))

# What unpickles, or would bring something that does.
MODULES = {
    'cloudpickle', 'dill', 'jsonpickle', 'joblib', 'marshal', 'peft', 'pickle',
    '_pickle', 'builtins', 'shelve', 'torch', 'transformers', 'yaml'}
BUILTINS = {'eval', 'exec', 'compile', '__import__', '__builtins__'}
# Switches that a library has for it, and the only value each may have.
SWITCHES = {'allow_pickle': False, 'trust_remote_code': False,
            'weights_only': True, 'shell': False}
ATTRIBUTES = {'set_allow_pickle', 'unsafe_load', 'from_pretrained'}


def _offences(source: str) -> list[str]:
  """What in a module could run what a file holds."""
  return [offence for node in ast.walk(ast.parse(source))
          for offence in _OF_NODE.get(type(node), lambda _: [])(node)]


def _modules(names: list[object]) -> list[str]:
  """Those that are banned."""
  return [name for name in names
          if isinstance(name, str) and name.split('.')[0] in MODULES]


def _switch(name: object, value: ast.expr) -> list[str]:
  """A switch that has another value than the one it may have."""
  if not isinstance(name, str) or name not in SWITCHES:
    return []
  if isinstance(value, ast.Constant) and value.value is SWITCHES[name]:
    return []
  return [f'{name}={ast.unparse(value)}']


def _switches(node: ast.Dict) -> list[str]:
  """Switches in a dictionary of arguments."""
  return [offence for key, value in zip(node.keys, node.values, strict=True)
          for offence in _switch(getattr(key, 'value', None), value)]


def _imported_by_name(call: ast.Call) -> list[str]:
  """A banned module in importlib.import_module('...')."""
  if ast.unparse(call.func).split('.')[-1] != 'import_module':
    return []
  return _modules([getattr(argument, 'value', None) for argument in call.args])


_OF_NODE = {
    ast.Import: lambda node: _modules([alias.name for alias in node.names]),
    ast.ImportFrom: lambda node: _modules([node.module]),
    ast.Name: lambda node: sorted(BUILTINS & {node.id}),
    ast.Attribute: lambda node: sorted(ATTRIBUTES & {node.attr}),
    ast.keyword: lambda node: _switch(node.arg, node.value),
    ast.Dict: _switches,
    ast.Call: _imported_by_name,
}


@pytest.mark.parametrize(
    'path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_a_file_holds(path):
  assert not _offences(path.read_text())


@pytest.mark.parametrize('source', [
    'import pickle', 'import pickle as p', 'from pickle import loads',
    'import torch', 'import torch.serialization', 'from torch import load',
    'import transformers', 'from peft import PeftModel', 'import joblib',
    'eval(text)', 'run = eval', 'exec(text)', "compile(text, '', 'exec')",
    "__import__('pickle')", 'from builtins import eval as f',
    "importlib.import_module('torch')", "import_module('pickle')",
    'np.load(path, allow_pickle=True)', 'np.load(path, allow_pickle=flag)',
    "np.load(path, **{'allow_pickle': True})",
    'load(path, trust_remote_code=True)', 'load(path, weights_only=False)',
    'subprocess.run(text, shell=True)', 'Auto.from_pretrained(name)',
    'yaml_module.unsafe_load(text)', 'import yaml'])
def test_what_would_is_found(source):
  assert _offences(source)


@pytest.mark.parametrize('source', [
    'np.save(path, array, allow_pickle=False)', 'ast.literal_eval(text)',
    "config.get('trust_remote_code')", 're.compile(text)', 'model.eval()',
    'importlib.import_module(name)'])
def test_what_would_not_is_not(source):
  assert not _offences(source)
