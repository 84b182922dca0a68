"""gin: command-line spellings, where files are found, errors in one line."""

import ast
from collections.abc import Callable, Iterator, Sequence
import contextlib
import difflib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
from typing import Any, TypeVar

from absl import app
import gin
from gin import config_parser
from t5x import keyword_options

T = TypeVar('T')

# Packages that ship gin files. They are found by path and never imported here.
_CONFIG_PACKAGES = ('t5x', 'prompt_tuning')


class GinError(ValueError):
  """A configuration that cannot be used; one line that says what to change."""


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into `--gin_bindings=NAME = VALUE`.

  Args:
    args: the command line.

  Returns:
    The same with rewritten elements; see `quoted` for values.

  Raises:
    ValueError: for an element without `=`.
  """
  def rewritten(arg: str) -> str:
    if not arg.startswith('--gin.'):
      return arg
    name, equals, value = arg.removeprefix('--gin.').partition('=')
    if not equals:
      raise ValueError(
          f'{arg!r} has no value; write --gin.NAME=VALUE.')
    return f'--gin_bindings={name} = {quoted(value)}'

  return [rewritten(arg) for arg in args]


def quoted(value: str) -> str:
  """A value as gin reads it; what is not a gin value becomes a string.

  Literals (numbers, quoted strings, tuples, dictionaries, None, True), macros
  and references stay as they are; a bare word, a path, or a template that
  begins with a field, as `{label}`, is quoted.
  """
  text = value.strip()
  if text.startswith(('@', '%')):
    return text
  try:
    ast.literal_eval(text)
  except (ValueError, SyntaxError):
    structured = text.startswith(tuple('([{\'"'))
    template = re.match(r'\{\w+\}', text)
    return text if structured and not template else repr(text)
  return text


def find_config(name: str, search_paths: Sequence[str] = ('.',)) -> str | None:
  """Where a gin file is.

  A relative name is tried in the search paths; then as a path inside a package
  (`t5x/configs/runs/finetune.gin`); then below the folders `configs/` and
  `gin/` of a checkout or of the installed package, with and without
  `prompt_tuning/` in front.

  Args:
    name: as given on the command line or in an include.
    search_paths: folders of the user's own files.

  Returns:
    An existing path, or None.
  """
  path = pathlib.Path(name)
  if path.is_absolute() or '://' in name:
    return name if path.is_file() else None
  roots = [pathlib.Path(p) for p in search_paths]
  for package in _CONFIG_PACKAGES:
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
      inside, beside = pathlib.Path(location), pathlib.Path(location).parent
      roots += [beside]
      if package != 't5x':
        roots += [inside / 'configs', beside / 'configs', inside]
  plain = re.sub(r'^prompt_tuning/(?=configs/|gin/)', '', name)
  for spelling in dict.fromkeys((name, plain)):
    for root in roots:
      if (root / spelling).is_file():
        return os.fspath(root / spelling)
  return None


def parse_gin_flags(
    gin_search_paths: Sequence[str],
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
    *,
    finalize_config: bool = True,
) -> None:
  """Parses files in order, then bindings; what comes later wins.

  Args:
    gin_search_paths: folders of the user's own files.
    gin_files: as given on the command line.
    gin_bindings: `NAME = VALUE`.
    finalize_config: lock the configuration.

  Raises:
    GinError: naming the file or binding, and the fix.
  """
  _read_with_find_config(gin_search_paths)
  for file in gin_files:
    if find_config(file, gin_search_paths) is None:
      raise GinError(
          f'--gin_file={file}: no such file in {list(gin_search_paths)}, nor '
          f'among the files of {" and ".join(_CONFIG_PACKAGES)}.')
    with one_line_errors(f'--gin_file={file}'):
      gin.parse_config_file(file)
  for binding in gin_bindings:
    with one_line_errors(f'--gin.{binding.replace(" = ", "=", 1)}'):
      gin.parse_config(binding)
  if finalize_config:
    with one_line_errors('the gin configuration'):
      gin.finalize()


def _read_with_find_config(search_paths: Sequence[str]) -> None:
  """Makes `find_config` the only rule by which gin finds files.

  gin's own readers would be asked first and fail on folders that are no
  packages; it offers no way to replace them.
  """
  def find(name: str) -> str | None:
    return find_config(name, search_paths)

  def read(name: str):
    return open(find(name) or name, encoding='utf-8')  # noqa: SIM115  gin closes.

  gin.config._FILE_READERS[:] = [(read, lambda name: find(name) is not None)]


def _check_options(config: dict[tuple[str, str], dict[str, Any]]) -> None:
  """A finalize hook: names behind a function's `**options` must be its own."""
  for (_, selector), bindings in config.items():
    known = keyword_options.names(gin.get_configurable(selector))
    if known is None:
      continue
    if unknown := [name for name in bindings if name not in known]:
      raise GinError(f'{selector} has no parameter {unknown[0]!r}'
                     + _nearest_parameter(selector, unknown[0]))


gin.config.register_finalize_hook(_check_options)


@contextlib.contextmanager
def one_line_errors(where: str) -> Iterator[None]:
  """Turns gin's errors into one line with the place and the fix."""
  try:
    yield
  except GinError:
    raise
  except (ValueError, TypeError, NameError, AttributeError, SyntaxError,
          ImportError, OSError, RuntimeError, config_parser.tokenize.TokenError
          ) as error:
    known = explain(str(error))
    if isinstance(error, SyntaxError | config_parser.tokenize.TokenError):
      known = f'it cannot be parsed: {" ".join(str(error).split())}'
    if known is None:
      raise
    raise GinError(f'{where}: {known}') from error


def explain(message: str) -> str | None:
  """What a message of gin means and what to do; None if it is not gin's."""
  text = ' '.join(message.split())
  patterns = {
      r"No bindings specified for '([\w./]+?)/(?:gin\.)?macro'":
          'the macro {0} has no value; set it with --gin.{0}=VALUE or in a gin '
          'file.',
      r'([\w./]+?)/macro\.value set to `%gin\.REQUIRED`':
          '{0} is required; set it with --gin.{0}=VALUE.',
      r'([\w./]+) set to `%gin\.REQUIRED`':
          '{0} is required; set it with --gin.{0}=VALUE.',
      r'Required bindings for `([^`]+)` not provided in config: (\[[^\]]*\])':
          '{0} needs {1}; bind them in a gin file, or as --gin.{0}.NAME=VALUE.',
      r"missing \d+ required .* for arguments: (\[[^\]]*\]) Gin had .* call to "
      r"configurable '([^']+)'":
          '{1} needs {0}; bind them in a gin file, or as --gin.{1}.NAME=VALUE.',
      r"missing \d+ required \S+ arguments?: (.+?) In call to configurable "
      r"'([^']+)'":
          '{1} needs {0}; give a --gin_file that binds them, for instance '
          'runs/prompt_finetune.gin behind a model file.',
      r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'":
          '{0} has no parameter {1!r}{near}',
      r"No configurable matching reference '(@[^']+)'":
          'nothing is called {0}; import its module in the gin file that '
          'refers to it.',
      r"No configurable matching '([^']+)'":
          'nothing is called {0!r}; a name can only be bound after a gin file '
          'has mentioned it, as module.name without the import alias.',
      r'Unable to open file: (\S+)\. Searched':
          'the included file {0} does not exist.',
      r"'?(\w+)'? was not provided by an import statement":
          '{0} is used but not imported in that file; add "from PACKAGE import '
          '{0}".',
      r"No module named '([^']+)'":
          'the module {0} cannot be imported; install it or mend the import.',
      r"Couldn't resolve selector ([\w.]+);":
          '{0} does not exist; check the spelling.',
  }
  for pattern, meaning in patterns.items():
    if match := re.search(pattern, text):
      place = re.search(r'In file "([^"]+)", line (\d+)', text)
      at = f' ({place[1]}, line {place[2]})' if place else ''
      near = _nearest_parameter(*match.groups()) if '{near}' in meaning else ''
      return meaning.format(*match.groups(), near=near) + at
  return None


def _nearest_parameter(selector: str, name: str) -> str:
  """A suggestion for a misspelt parameter."""
  # gin's own wrapper of a class takes anything.
  plain = gin.config._REGISTRY.get_match(selector).wrapped
  known = (keyword_options.names(plain)
           or set(inspect.signature(plain).parameters)) - {'self'}
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
  return f'; did you mean {near[0]!r}?' if near else '; it has none.'


def _registered(fn: Callable[..., T]) -> Callable[..., T]:
  """A function as gin calls it, known to gin as a part of the program."""
  try:
    return gin.get_configurable(fn)
  except ValueError:
    gin.register(fn.__name__, module='__main__')(fn)
    return gin.get_configurable(fn)


@contextlib.contextmanager
def main_function(fn: Callable[..., T]) -> Iterator[Callable[..., T]]:
  """Makes a function configurable as `__main__.<its name>`.

  Published run files say `import __main__ as train_script`; so within the
  context, whichever module is the program has the function as an attribute,
  and beside it, for as long as the program runs, what the function's module
  lists in FOR_GIN.

  Args:
    fn: `train`, `evaluate` or `infer`.

  Yields:
    The function with its gin bindings applied; it raises GinError if something
    it needs has no value.
  """
  name, program = fn.__name__, sys.modules['__main__']
  configured = _registered(fn)

  def call() -> T:
    with one_line_errors(name):
      return configured()

  for helper in fn.__globals__.get('FOR_GIN', ()):
    _registered(fn.__globals__[helper])
    vars(program).setdefault(helper, fn.__globals__[helper])
  absent = object()
  before = getattr(program, name, absent)
  setattr(program, name, fn)
  try:
    yield call
  finally:
    if before is absent:
      delattr(program, name)
    else:
      setattr(program, name, before)


def bindings_of(fn: Callable[..., Any]) -> str:
  """A function's name and what gin binds of its arguments, as text."""
  name = getattr(fn, '__name__', type(fn).__name__)
  try:
    bound = gin.get_bindings(fn, resolve_references=False)
  except ValueError:  # gin does not know it, so it has no bindings.
    bound = {}
  return f'{name}({", ".join(f"{k}={bound[k]!r}" for k in sorted(bound))})'


def config_str() -> str:
  """All bindings and macros, as gin would read them."""
  return gin.config_str()


def operative_config_str() -> str:
  """The parameters that were used, defaults included."""
  return gin.operative_config_str()


def value_of(
    expression: str,
    gin_files: Sequence[str],
    gin_bindings: Sequence[str] = (),
    gin_search_paths: Sequence[str] = ('.',),
) -> Any:
  """What an expression means in a configuration, for notebooks.

  The configuration takes the place of an earlier one and stays in force: what
  the value calls later is configured by it too.

  Args:
    expression: for instance `%MODEL`.
    gin_files: files in order.
    gin_bindings: `NAME = VALUE`, after them.
    gin_search_paths: folders of the user's own files.

  Returns:
    The value.

  Raises:
    GinError: naming the file or binding, and the fix.
  """
  gin.clear_config()
  with main_function(_asked_for) as call:
    parse_gin_flags(gin_search_paths, gin_files, [
        *gin_bindings, f'{_asked_for.__name__}.value = {expression}'])
    return call()


def _asked_for(value: Any) -> Any:
  """Gives `value_of` what gin makes of its expression."""
  return value


def summarize_gin_config(model_dir: str, *unused_args: Any) -> None:
  """Writes `config.gin` into a run's folder."""
  folder = pathlib.Path(model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.gin').write_text(config_str())


def sum_fn(var1: float, var2: float) -> float:
  """`var1 + var2`, for gin files."""
  return var1 + var2


def bool_fn(var1: Any) -> bool:
  """`bool(var1)`, for gin files."""
  return bool(var1)


def string_split_fn(
    text: str, separator: str | None = None, maxsplit: int = -1,
    index: int | None = None,
) -> list[str] | str:
  """`text.split(separator, maxsplit)`, or the part at `index`."""
  parts = text.split(separator, maxsplit)
  return parts if index is None else parts[index]


def get_gin_config_str(show_provenance: bool = False) -> str:
  """As `config_str`, under T5X's name.

  Raises:
    GinError: if the places of the bindings are asked for.
  """
  if show_provenance:
    raise GinError(
        'get_gin_config_str.show_provenance: the released gin-config does not '
        'know where a binding stands; leave it False.')
  return config_str()


def run(main: Callable[[Sequence[str]], Any]) -> None:
  """Runs a program whose command line may hold `--gin.NAME=VALUE`."""
  app.run(main, flags_parser=lambda argv: app.parse_flags_with_usage(
      rewrite_gin_args(argv)))
