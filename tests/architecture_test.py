"""The house: which module may import which, and what the core does without."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# A module may import what stands before it. Rows are DESIGN's, bottom to top.
ENGINE = {
    'maths': [
        'compilation_cache', 'keyword_options', 'actions', 'losses', 'metrics',
        'batch_metrics', 'weight_metrics', 'decoding_state', 'sampling',
        'beam_search', 'decoding', 'optimizers', 'adafactor', 'schedules',
        'partitioning', 'fingerprint', 'manifest', 'ready_batches',
        'state_utils', 'published_sizes'],
    'model': [
        'examples.t5.config', 'examples.t5.sequence', 'examples.t5.attention',
        'examples.t5.layers', 'examples.t5.network',
        'examples.scalable_t5.network', 'examples.decoder_only.network',
        'train_state'],
    'behaviour': [
        'base_models', 'models', 'lazy_arrays', 'untrusted_files',
        'whole_writes',
        'safetensors_files', 'hugging_face_config', 'hugging_face_hub',
        'hugging_face', 'zarr_arrays', 'checkpoint_importer',
        'orbax_checkpoints', 'checkpoint_utils', 'checkpoint_folders',
        'checkpoint_configs', 'optimizer_slots', 'native_checkpoints',
        'run_saves', 'best_saves', 'checkpoints', 'model_info'],
    'one step': [
        'trainer', 'restoration', 'initialization', 'inference_state'],
    'edges': ['datasets', 'gin_utils', 'metric_writers', 'processes'],
    'loop': [
        'inspection', 'explain', 'loop', 'evaluation', 'inference_data',
        'table_files', 'file_tasks', 'vocabularies', 'inference_files',
        'inference_rows', 'inference_loop', 'export_lib', 'program'],
    'scripts': [
        'train', 'precompile', 'export_batches', 'eval', 'infer',
        'interactive_model', 'export', 'utils', 'main'],
    'tools': ['scripts.command', 'scripts.convert_checkpoint'],
}
SCIENCE = {
    'prompts': [
        'numpy_files', 'npz_files', 'masks', 'prompt_artifacts',
        'interop.peft', 'prompt_files', 'interpretation', 'prompts'],
    'train': [
        'train.prompts', 'train.layers', 'train.models', 'train.optim',
        'train.partitioning', 'train.numpy_checkpoints', 'train.utils'],
    'notebooks': ['interactive_model'],
    'spot': [f'spot.{name}' for name in (
        'similarity', 'retrieval', 'mixing', 'library', 'report', '__main__')],
    'tools': [
        'scripts.variables', 'scripts.extract_variable',
        'scripts.subsample_vocab', 'scripts.find_module',
        'scripts.recreate_checkpoint', 'scripts.diff_checkpoints',
        'scripts.convert_checkpoint', 'scripts.convert_prompt',
        'scripts.inspect_prompt'],
    'data': [
        'data.rank_classification', 'data.few_shot', 'data.from_files',
        'data.in_vocabulary',
        'data.offline_cache', 'data.descriptions', 'data.constants',
        'data.text_formats', 'data.noise', 'data.preprocessors',
        'data.postprocessors', 'data.label_metrics', 'data.qa_metrics',
        'data.text_metrics', 'data.metrics', 'data.features', 'data.families',
        'data.benchmarks', 'data.c4', 'data.glue', 'data.glue_transfer',
        'data.qa', 'data.summarization', 'data.super_glue', 'data.tasks'],
    'spot data': [
        'spot.data.preprocessors', 'spot.data.c4', 'spot.data.generation',
        'spot.data.glue', 'spot.data.mrqa', 'spot.data.multiple_choice',
        'spot.data.nli', 'spot.data.qa', 'spot.data.sentiment',
        'spot.data.summarization', 'spot.data.super_glue',
        'spot.data.translation', 'spot.data.sets', 'spot.data.tasks',
        'spot.data.made_datasets'],
    'recycling data': [
        'recycling.data.preprocessors', 'recycling.data.metrics',
        'recycling.data.c4', 'recycling.data.imdb', 'recycling.data.qqp',
        'recycling.data.record', 'recycling.data.sst2'],
    'perceptron data': ['extended.perceptron.data.tasks'],
    'data tools': [
        'scripts.cache_tasks', 'scripts.make_dataset', 'scripts.show_tasks'],
    'demo': [
        'demo.files', 'demo.language', 'demo.tasks', 'demo.pretraining',
        'demo.make_vocabulary', 'demo.make_checkpoint', 'demo.__main__'],
}
CORE = ('maths', 'model', 'behaviour', 'one step')
EDGES = ('t5x.datasets', 't5x.gin_utils', 't5x.metric_writers',
         't5x.processes')
HEAVY = ('tensorflow', 'seqio', 'gin', 'tensorflow_datasets', 'torch',
         'transformers')
# Where TensorFlow and SeqIO may be named.
DATA_MODULES = ('t5x.datasets', 't5x.inference_data', 't5x.file_tasks',
                't5x.vocabularies', 't5x.export_lib',
                'prompt_tuning.data.rank_classification',
                'prompt_tuning.data.few_shot',
                'prompt_tuning.data.from_files',
                'prompt_tuning.data.in_vocabulary',
                'prompt_tuning.data.offline_cache',
                'prompt_tuning.data.descriptions',
                'prompt_tuning.data.text_formats',
                'prompt_tuning.data.noise',
                'prompt_tuning.data.preprocessors',
                'prompt_tuning.data.metrics',
                'prompt_tuning.data.features',
                'prompt_tuning.data.families',
                'prompt_tuning.spot.data.preprocessors',
                'prompt_tuning.spot.data.made_datasets',
                'prompt_tuning.recycling.data.preprocessors',
                'prompt_tuning.extended.perceptron.data.tasks',
                'prompt_tuning.scripts.cache_tasks',
                'prompt_tuning.scripts.show_tasks',
                'prompt_tuning.demo.tasks',
                'prompt_tuning.demo.pretraining')


def _modules(package: str) -> list[str]:
  """Every module of a package, packages' own files aside."""
  folder = ROOT / package
  return sorted(
      '.'.join([package, *path.relative_to(folder).with_suffix('').parts])
      for path in folder.rglob('*.py') if path.name != '__init__.py')


def _order() -> list[str]:
  """All modules, bottom to top."""
  return [f'{package}.{name}'
          for package, rows in (('t5x', ENGINE), ('prompt_tuning', SCIENCE))
          for row in rows.values() for name in row]


def _imports(module: str) -> set[str]:
  """Everything a module imports, by full name."""
  tree = ast.parse((ROOT / (module.replace('.', '/') + '.py')).read_text())
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{module}: relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
      found.add(node.module)
  return found


MODULES = _modules('t5x') + _modules('prompt_tuning')


def test_every_module_has_one_row():
  order = _order()
  assert sorted(order) == sorted(MODULES)
  assert len(order) == len(set(order))


@pytest.mark.parametrize('module', MODULES)
def test_imports_point_downwards(module):
  order = _order()
  ours = _imports(module) & set(order)
  if module in EDGES:
    assert ours <= {'t5x.keyword_options'}
  upwards = [name for name in ours if order.index(name) >= order.index(module)]
  assert not upwards


@pytest.mark.parametrize('module', _modules('t5x'))
def test_engine_does_not_know_the_science(module):
  assert not [n for n in _imports(module) if n.startswith('prompt_tuning')]


@pytest.mark.parametrize('module', MODULES)
def test_tensorflow_is_named_by_data_modules_only(module):
  named = {n.split('.')[0] for n in _imports(module)}
  if module not in DATA_MODULES:
    assert not named & {'tensorflow', 'seqio', 'tensorflow_datasets'}


def test_core_needs_neither_tensorflow_nor_seqio_nor_gin():
  core = [f't5x.{name}' for row in CORE for name in ENGINE[row]]
  program = (
      'import sys\n'
      f'for name in {HEAVY!r}:\n'
      '  sys.modules[name] = None\n'  # Importing it then fails.
      'import importlib\n'
      f'for name in {core!r}:\n'
      '  importlib.import_module(name)\n'
      f'loaded = set({HEAVY!r}) & {{n for n, m in sys.modules.items() if m}}\n'
      'assert not loaded, loaded\n')
  subprocess.run([sys.executable, '-c', program], check=True, cwd=ROOT)
