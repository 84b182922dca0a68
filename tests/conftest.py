"""Strict by default: eight devices, no implicit promotion, warnings are errors.

Which warnings are excepted stands in pyproject.toml, each with its reason.
"""

import os
import tempfile

# Before JAX is imported: a CPU with eight devices, so that sharding is real.
# Compiling takes most of the time, so it is told not to try hard. A process
# that a test starts may append another number of devices: the last one counts.
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=8'
    + ' --xla_backend_optimization_level=0'
    + ' --xla_cpu_use_fusion_emitters=false')
os.environ['JAX_PLATFORMS'] = 'cpu'
# Tests, and the processes that they start, compile the same programs again and
# again: these are kept, for as long as the tests run.
os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='compiled-')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

import contextlib
import json
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys

from flax import traverse_util
import gin
import jax
import jax.numpy as jnp
import numpy as np
from prompt_tuning import prompts
from prompt_tuning.train import layers
from prompt_tuning.train import numpy_checkpoints
from prompt_tuning.train import prompts as train_prompts
import pytest
from safetensors import numpy as safetensors_numpy
from t5x import adafactor
from t5x import decoding
from t5x import hugging_face_hub
from t5x import initialization
from t5x import metrics as metrics_lib
from t5x import models
from t5x import optimizers
from t5x import partitioning
from t5x import train_state
from t5x import trainer as trainer_lib
from t5x.examples.t5 import network

ROOT = pathlib.Path(__file__).parents[1]
SHARED = pathlib.Path(__file__).parents[2] / 'shared' / 'data'


def pytest_unconfigure():
  """Removes what has been compiled."""
  shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'])


@pytest.fixture(autouse=True)
def strict_jax():
  """Implicit dtype and rank promotion raise."""
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    yield


@pytest.fixture(autouse=True)
def clean_gin():
  """No configuration leaks from one test to the next."""
  gin.clear_config(clear_constants=False)
  yield
  gin.clear_config(clear_constants=False)


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """Published artifacts; the tests that need them are skipped without."""
  if not SHARED.is_dir():
    pytest.skip(f'{SHARED} is not there')
  return SHARED


class Tiny:
  """A T5 of 8 x 2 widths that compiles in a second."""

  SHAPES = {'encoder_input_tokens': (8, 6), 'decoder_input_tokens': (8, 4),
            'decoder_target_tokens': (8, 4), 'decoder_loss_weights': (8, 4)}

  class Vocabulary:
    eos_id = 1

  def config(self, **changes):
    sizes = {
        'vocab_size': 32, 'emb_dim': 8, 'num_heads': 2, 'head_dim': 4,
        'num_encoder_layers': 2, 'num_decoder_layers': 2, 'mlp_dim': 16,
        'mlp_activations': ('gelu', 'linear'), 'dropout_rate': 0.0}
    return network.T5Config(**sizes | changes)

  def optimizer(self, *regexes, definition=None):
    definition = definition or adafactor.Adafactor(
        multiply_by_parameter_scale=False)
    if not regexes:
      return definition
    keep = numpy_checkpoints.match_any(regexes)
    return optimizers.MultiOptimizer(
        [(traverse_util.ModelParamTraversal(keep), definition)])

  def module(self, prompt_length=0, **changes):
    config = self.config(**changes)
    if not prompt_length:
      return network.Transformer(config)
    def prompt():
      return train_prompts.Prompt(prompts.Prompt(prompt_length))
    def encoder(**kwargs):
      return layers.PromptEncoder(prompt_factory=prompt, **kwargs)
    return layers.PromptEncoderDecoder(config, encoder_factory=encoder)

  def model(self, *regexes, prompt_length=0, definition=None, **changes):
    return models.EncoderDecoderModel(
        self.module(prompt_length, **changes), self.Vocabulary(),
        self.Vocabulary(), self.optimizer(*regexes, definition=definition),
        decode_fn=decoding.temperature_sample)

  def batch(self, seed=0, vocab_size=32):
    rng = np.random.default_rng(seed)
    batch = {name: rng.integers(1, vocab_size, shape).astype(np.int32)
             for name, shape in self.SHAPES.items()}
    batch['encoder_input_tokens'][:, 4:] *= rng.integers(0, 2, (8, 1))
    batch['decoder_target_tokens'][:, 3:] *= rng.integers(0, 2, (8, 1))
    targets = batch['decoder_target_tokens']
    batch['decoder_input_tokens'] = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    batch['decoder_loss_weights'] = (targets > 0).astype(np.float32)
    return batch

  def values(self, infos, seed=0):
    """Random parameters by path; from numpy, which needs no compilation."""
    rng = np.random.default_rng(seed)
    return {
        path: (rng.normal(size=info.shape) / np.sqrt(info.shape[0])
               + path.endswith('scale')).astype(info.dtype)
        for path, info in sorted(infos.items())}

  def params(self, module, seed=0):
    """Random nested parameters of a module."""
    ids = jnp.ones((1, 2), jnp.int32)
    infos = train_state.describe(
        lambda key: module.init(key, ids, ids, ids, enable_dropout=False),
        self.optimizer())
    return jax.tree.map(
        jnp.asarray, train_state.nested(self.values(infos, seed)))

  def trainer(self, model, partitions=1, first_step=0, seed=0, **options):
    """A trainer."""
    partitioner = partitioning.PjitPartitioner(
        partitions, logical_axis_rules=partitioning.standard_logical_axis_rules(
            additional_rules=(('prompt', None), ('prompt_embed', None))))
    return trainer_lib.Trainer(
        model, partitioner, first_step=first_step,
        base_key=jax.random.key(seed + 1),
        **{'learning_rate_fn': lambda step: jnp.float32(0.3), **options})

  def start(self, model, partitions=1, first_step=0, seed=0, **options):
    """A trainer and a fresh state."""
    made = self.trainer(model, partitions, first_step, seed, **options)
    infos = self.infos(model)
    placement = train_state.shardings(infos, made.partitioner)
    template = train_state.template(infos, placement, made.optimizer)
    values = jax.device_put(self.values(infos, seed), placement)
    return made, train_state.create(
        first_step, values, template, made.optimizer)

  def begin(self, origin, trainer, restore):
    """Where a run starts, as `train` makes it."""
    return initialization.start(
        origin, trainer=trainer, infos=self.infos(trainer.model),
        init_fn=self.init_fn(trainer.model), restore=restore,
        init_key=origin.keys()[0])

  def init_fn(self, model):
    """From a key to the variables of a model."""
    return lambda key: model.get_initial_variables(key, self.SHAPES)

  def infos(self, model):
    """What is known of every parameter."""
    return train_state.describe(self.init_fn(model), model.optimizer_def)

  def steps(self, trainer, state, count, seed=0):
    """The state after some steps, and the metrics of each."""
    rows = []
    for i in range(count):
      batch = trainer.partitioner.global_batch(self.batch(seed + i))
      state, metrics = trainer.train(state, batch)
      rows.append(metrics_lib.compute(metrics_lib.set_time(
          metrics_lib.to_host(metrics), 1.0)))
    return state, rows


@pytest.fixture(scope='session')
def tiny() -> Tiny:
  """Builders of tiny models, batches and runs."""
  return Tiny()


class HuggingFace:
  """Folders of T5s as transformers writes them, made without it."""

  CONFIG = {
      'architectures': ['T5ForConditionalGeneration'], 'model_type': 't5',
      'vocab_size': 32, 'd_model': 8, 'd_kv': 4, 'd_ff': 16, 'num_layers': 2,
      'num_decoder_layers': 3, 'num_heads': 2, 'dropout_rate': 0.1,
      'relative_attention_num_buckets': 32,
      'relative_attention_max_distance': 128, 'layer_norm_epsilon': 1e-06,
      'feed_forward_proj': 'gated-gelu', 'is_encoder_decoder': True,
      'tie_word_embeddings': False, 'torch_dtype': 'float32',
      'transformers_version': '4.20.0', 'n_positions': 512, 'use_cache': True}
  T5_1_0 = {'feed_forward_proj': 'relu', 'tie_word_embeddings': True}

  def shapes(self, config):
    """The documented names, `[out, in]`."""
    width, hidden = config['d_model'], config['d_ff']
    inner = config['num_heads'] * config['d_kv']
    found = {'shared': (config['vocab_size'], width)}
    if not config['tie_word_embeddings']:
      found['lm_head'] = (config['vocab_size'], width)
    gated = config['feed_forward_proj'].startswith('gated')
    for stack, count in (('encoder', config['num_layers']),
                         ('decoder', config['num_decoder_layers'])):
      found[f'{stack}.final_layer_norm'] = (width,)
      found[f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias'
            ] = (config['relative_attention_num_buckets'], config['num_heads'])
      parts = ['SelfAttention', 'EncDecAttention', 'DenseReluDense']
      if stack == 'encoder':
        parts.remove('EncDecAttention')
      for i in range(count):
        for j, part in enumerate(parts):
          place = f'{stack}.block.{i}.layer.{j}'
          found[f'{place}.layer_norm'] = (width,)
          if part == 'DenseReluDense':
            for name in ('wi_0', 'wi_1') if gated else ('wi',):
              found[f'{place}.{part}.{name}'] = (hidden, width)
            found[f'{place}.{part}.wo'] = (width, hidden)
          else:
            for name in 'qkv':
              found[f'{place}.{part}.{name}'] = (inner, width)
            found[f'{place}.{part}.o'] = (width, inner)
    return {f'{name}.weight': shape for name, shape in found.items()}

  def tensors(self, config, dtype=np.float32, seed=0):
    """Random values under those names."""
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(size=shape) / np.sqrt(shape[-1])
                   + ('norm' in name)).astype(dtype)
            for name, shape in self.shapes(config).items()}

  def write(self, folder, changes=None, tensors=None, **options):
    """Writes a folder; returns its tensors."""
    config = self.CONFIG | (changes or {})
    if tensors is None:
      tensors = self.tensors(config, **options)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config))
    safetensors_numpy.save_file(
        tensors, folder / 'model.safetensors', {'format': 'pt'})
    return tensors


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """`hub(name, folder)`: puts a model into an offline cache of the hub."""
  constants = pytest.importorskip('huggingface_hub.constants')
  cache, commit = tmp_path / 'hub', 'c0ffee' * 6 + 'c0ff'
  cache.mkdir()
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)

  def add(name: str, folder: pathlib.Path) -> pathlib.Path:
    repository = cache / f'models--{name.replace("/", "--")}'
    snapshot = repository / 'snapshots' / commit
    for place in (snapshot, repository / 'blobs', repository / 'refs'):
      place.mkdir(parents=True)
    (repository / 'refs' / 'main').write_text(commit)
    for number, path in enumerate(folder.iterdir()):
      path.rename(repository / 'blobs' / f'{number:040x}')
      (snapshot / path.name).symlink_to(f'../../blobs/{number:040x}')
    return snapshot

  hugging_face_hub.download.cache_clear()
  yield add
  hugging_face_hub.download.cache_clear()


@pytest.fixture(scope='session')
def theirs() -> HuggingFace:
  """Writes folders of Hugging Face's T5s."""
  return HuggingFace()


class Program:
  """A process that runs; what it has printed is in files."""

  def __init__(self, report: int, folder: pathlib.Path):
    self._report = os.fdopen(report)
    self._folder = folder
    self.pid = int(self._report.readline())
    self.returncode: int | None = None

  def poll(self, seconds: float = 0) -> int | None:
    """The exit code, negative for a signal; None if it still runs."""
    if self.returncode is None and (
        select.select([self._report], [], [], seconds)[0]):
      with self._report:
        self.returncode = int(self._report.readline())
    return self.returncode

  def wait(self, timeout: float = 300) -> int:
    """Waits for the end; a program that takes longer is killed."""
    try:
      assert self.poll(timeout) is not None, f'no end: {self.output}'
      return self.returncode
    finally:
      self.kill()

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)

  @property
  def stdout(self) -> str:
    return (self._folder / 'stdout').read_text()

  @property
  def stderr(self) -> str:
    return (self._folder / 'stderr').read_text()

  @property
  def output(self) -> str:
    return self.stdout + self.stderr


class Programs:
  """Starts programs by `fork_server.py`, which has imported TensorFlow once."""

  def __init__(self, folders: pytest.TempPathFactory):
    self._folders = folders
    self._socket, theirs = socket.socketpair()
    with theirs:
      self._server = subprocess.Popen(
          [sys.executable, str(ROOT / 'tests/fork_server.py'),
           str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()],
          env=os.environ | {'PYTHONPATH': os.pathsep.join(
              [str(ROOT), os.environ.get('PYTHONPATH', '')])})

  def start(self, *command: str, **environment: str) -> Program:
    """`python COMMAND...` in this checkout; -m and -c are understood.

    What is in the environment may be read late: JAX has read its own settings.
    """
    folder = self._folders.mktemp('program')
    read, write = os.pipe()
    with (open(folder / 'stdout', 'w') as out,
          open(folder / 'stderr', 'w') as error):
      socket.send_fds(self._socket, [json.dumps({
          'command': command, 'folder': str(ROOT),
          'environment': os.environ | environment}).encode()],
          [out.fileno(), error.fileno(), write])
    os.close(write)
    return Program(read, folder)

  def close(self) -> None:
    """Ends the server, and with it what still runs."""
    self._socket.close()
    self._server.wait(timeout=60)


@pytest.fixture(scope='session')
def programs(tmp_path_factory) -> Programs:
  """Starts programs; see `Programs.start`."""
  with contextlib.closing(Programs(tmp_path_factory)) as made:
    yield made
