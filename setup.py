"""Packaging: dependencies with the bounds that were tested, and gin files."""

import pathlib

import setuptools

# Both ends are tested: `make check-lower-bounds` installs the lower ones.
DEPENDENCIES = [
    'absl-py>=2.3,<3',
    'etils[epath]>=1.13,<2',
    'flax>=0.12.6,<0.13',
    'gin-config>=0.5,<0.6',
    'importlib-resources>=6.4,<8',  # TFDS imports it, but does not ask for it.
    'jax>=0.9.2,<0.11',
    'jaxtyping>=0.3,<0.4',
    'matplotlib>=3.10.8,<4',
    'msgpack>=1.1,<2',
    'numpy>=2.1.3,<3',
    'optax>=0.2.8,<0.3',
    'orbax-checkpoint>=0.12.4,<0.13',
    'rich>=14,<16',
    'rouge-score>=0.1.2,<0.2',
    'sacrebleu>=2.5.1,<3',
    'safetensors>=0.8,<0.9',
    'scikit-learn>=1.6,<2',
    'scipy>=1.16,<2',
    'sentencepiece>=0.2.3,<0.3',
    'seqio>=0.0.20,<0.0.21',
    'tensorboard>=2.21,<2.22',
    'tensorflow>=2.21,<2.22',
    'tensorflow-datasets>=4.9.10,<4.10',
    'tensorflow-text>=2.21.1,<2.22',
    'tensorstore>=0.1.84,<0.2',
]
HUB = ['huggingface-hub>=2.4,<3']
EXTRAS = {
    'hub': HUB,  # Models by their names on the Hugging Face hub.
    'gpu': ['jax[cuda13]>=0.9.2,<0.11'],
    'tpu': ['jax[tpu]>=0.9.2,<0.11'],
    'test': [
        *HUB,
        'mypy>=2.1,<3',
        'pytest>=9,<10',
        'pyyaml>=6,<7',
        'ruff>=0.16,<0.18',
        'setuptools>=77',
    ],
    # Live comparisons. For the CPU build of torch install it first:
    # pip install torch==2.13.0
    'parity': [
        'peft>=0.20,<0.22', 'torch>=2.13,<2.14', 'transformers>=5.20,<6'],
    'notebooks': ['ipykernel>=7,<8', 'nbclient>=0.10,<0.12'],
}
# gin files live at the root of a checkout and ship inside the package.
GIN_FOLDERS = {'prompt_tuning.configs': 'configs', 'prompt_tuning.gin': 'gin'}


def gin_packages() -> dict[str, str]:
  """Every folder of gin files as a package of data, with its folder."""
  found = {}
  for package, root in GIN_FOLDERS.items():
    for folder in [pathlib.Path(root), *pathlib.Path(root).rglob('*/')]:
      name = '.'.join([package, *folder.relative_to(root).parts])
      found[name] = folder.as_posix()
  return found


PACKAGES = setuptools.find_packages(
    include=['t5x', 't5x.*', 'prompt_tuning', 'prompt_tuning.*'])

setuptools.setup(
    name='spot-prompt-tuning',
    version='0.1.0',
    description='Prompt tuning and soft prompt transfer (SPoT) for T5 in JAX.',
    long_description=pathlib.Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=[*PACKAGES, *gin_packages()],
    package_dir=gin_packages(),
    package_data={
        '': ['*.gin'],
        't5x': ['configs/**/*.gin', 'examples/**/*.gin'],
        'prompt_tuning': ['demo/data/**/*'],
    },
    install_requires=DEPENDENCIES,
    extras_require=EXTRAS,
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
