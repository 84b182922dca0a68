"""The library: nothing lost, nothing mixed up, and its command line."""

import concurrent.futures
import dataclasses
import re

import numpy as np
from prompt_tuning import prompt_artifacts
from prompt_tuning.spot import __main__ as program
from prompt_tuning.spot import library as prompt_library
from prompt_tuning.spot import mixing
from prompt_tuning.spot import similarity
import pytest
from t5x import whole_writes

BASE = prompt_artifacts.Base('a' * 64, 12, (5, 6), '/models/checkpoint_5', 5)


def values_of(seed, width=6):
  return np.random.default_rng(seed).normal(1, 1, (4, width)).astype(np.float32)


def artifact(folder, task='mnli', seed=0, **changes):
  """An artifact somewhere else."""
  values = changes.pop('values', values_of(seed))
  path = folder / f'{task}_{seed}.artifact'
  prompt_artifacts.write(path, values, dataclasses.replace(
      prompt_artifacts.Record(
          shape=values.shape, sha256=prompt_artifacts.sha256(values), task=task,
          seed=seed, step=10_000, metrics={f'{task}/accuracy': 61.5},
          base=BASE), **changes))
  return path


@pytest.fixture
def library(tmp_path):
  return prompt_library.PromptLibrary(tmp_path / 'library')


@pytest.fixture
def filled(library, tmp_path):
  for seed in range(3):
    library.add(artifact(tmp_path, seed=seed))
  return library


def test_a_prompt_comes_back_with_its_record(library, tmp_path):
  path = artifact(tmp_path, seed=2)
  assert library.names() == []
  assert library.add(path) == 'mnli-seed2-step10000'
  assert library.add(path, 'best of mnli'.replace(' ', '_')) == 'best_of_mnli'
  assert library.names() == ['best_of_mnli', 'mnli-seed2-step10000']
  for name in library.names():
    found = library.read(name)
    np.testing.assert_array_equal(found.prompt, values_of(2))
    assert found.record == prompt_artifacts.read(path).record


def test_a_runs_folder_is_taken(library, tmp_path):
  step = tmp_path / 'numpy_checkpoints' / 'checkpoint_7'
  step.mkdir(parents=True)
  made = artifact(tmp_path)
  made.rename(step / 'encoder.prompt.prompt.prompt.artifact')
  np.save(tmp_path / 'twin.npy', values_of(0))
  (tmp_path / 'twin.npy').rename(step / 'encoder.prompt.prompt.prompt')
  assert library.add(step) == 'mnli-seed0-step10000'


def test_writers_at_once_lose_nothing(library, tmp_path):
  paths = [artifact(tmp_path, seed=seed) for seed in range(12)]

  def add(path):
    try:
      return library.add(path)
    except whole_writes.ExistsError:
      return None

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    added = list(pool.map(add, [*paths, *paths]))
  # Each name is given once.
  assert sorted(filter(None, added)) == library.names()
  assert len(library.names()) == 12 and added.count(None) == 12
  assert not library.verify()
  assert sorted(p.name for p in library.folder.iterdir()) == library.names()


def test_removing(filled):
  filled.remove('mnli-seed1-step10000')
  assert filled.names() == ['mnli-seed0-step10000', 'mnli-seed2-step10000']
  assert sorted(p.name for p in filled.folder.iterdir()) == filled.names()
  with pytest.raises(
      prompt_library.PromptLibraryError, match='has no prompt.*has 2'):
    filled.remove('mnli-seed1-step10000')


def test_damage_is_found(filled):
  file = filled.folder / 'mnli-seed1-step10000' / 'prompt.safetensors'
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  file.write_bytes(content)
  assert list(filled.verify()) == ['mnli-seed1-step10000']
  with pytest.raises(prompt_artifacts.ArtifactError, match='SHA-256'):
    filled.read('mnli-seed1-step10000')


def test_similarities_are_those_of_the_measure(filled):
  target = values_of(1) + 0.1 * values_of(8)
  for name, measure in similarity.MEASURES.items():
    if name == 'subspaces':
      continue  # Four tokens have no eight dimensions.
    found = filled.similar(target, name)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    for prompt, value in found.items():
      assert value == pytest.approx(
          measure([target], [filled.read(prompt).prompt])[0, 0])
  assert next(iter(filled.similar(target))) == 'mnli-seed1-step10000'


@pytest.mark.parametrize('changes, message', [
    ({'values': values_of(0, 7)}, 'width 7, the library of width 6'),
    ({'base': dataclasses.replace(BASE, fingerprint='b' * 64)},
     'was trained on .*bbbbbbbbbbbb.*aaaaaaaaaaaa.*a library for each'),
    ({'task': None}, 'give it a name'),
    ({'task': '../x'}, r"'\.\._x-seed9-step10000' cannot be the name")])
def test_what_does_not_fit_is_refused(filled, tmp_path, changes, message):
  (tmp_path / 'other').mkdir()
  given = {'seed': 9} | changes
  task = given.pop('task', 'qqp')
  path = artifact(tmp_path / 'other', 'file', **given)
  values = prompt_artifacts.read(path)
  renamed = dataclasses.replace(values.record, task=task)
  prompt_artifacts.write(tmp_path / 'other' / 'x', values.prompt, renamed)
  before = filled.names()
  with pytest.raises(prompt_library.PromptLibraryError, match=message):
    filled.add(tmp_path / 'other' / 'x')
  assert filled.names() == before


def test_a_prompt_of_another_model_that_came_in_is_found(filled, tmp_path):
  path = artifact(
      tmp_path, 'qqp', base=dataclasses.replace(BASE, fingerprint='b' * 64))
  path.rename(filled.folder / 'qqp')
  assert list(filled.verify()) == ['qqp']


def test_what_is_no_artifact_is_refused(library, tmp_path):
  np.save(tmp_path / 'a.npy', values_of(0))
  with pytest.raises(prompt_library.PromptLibraryError, match='convert_prompt'):
    library.add(tmp_path / 'a.npy')
  with pytest.raises(
      prompt_library.PromptLibraryError, match='no prompts to compare'):
    library.similar(values_of(0))
  with pytest.raises(
      prompt_library.PromptLibraryError, match="'cosine' is no measure"):
    library.similar(values_of(0), 'cosine')


def run(*arguments):
  return program.main([str(argument) for argument in arguments])


def test_the_command_line(tmp_path, capsys):
  flag = f'--library={tmp_path / "library"}'
  assert run('add', flag, *(artifact(tmp_path, seed=s) for s in range(3))) == 0
  assert run('list', flag) == 0
  shown = capsys.readouterr().out.splitlines()
  assert shown[:3] == [f'mnli-seed{s}-step10000' for s in range(3)]
  assert shown[3] == ('mnli-seed0-step10000  [4, 6]  mnli  step 10000  '
                      'mnli/accuracy 61.5')
  np.save(tmp_path / 'target.npy', values_of(2))
  mean = tmp_path / 'mean.npy'
  assert run('retrieve', flag, tmp_path / 'target.npy', '--k=2',
             '--measure=average_tokens', f'--average={mean}') == 0
  first, second, _ = capsys.readouterr().out.splitlines()
  assert re.fullmatch(r' +1\.0000  mnli-seed2-step10000', first)
  library = prompt_library.PromptLibrary(tmp_path / 'library')
  weights = mixing.similarity_weights(
      library.similar(values_of(2), 'average_tokens'), 2)
  assert second.endswith(list(weights)[1])
  np.testing.assert_array_equal(np.load(mean), mixing.weighted_average(
      [library.read(name).prompt for name in weights], list(weights.values())))
  assert run('retrieve', flag, tmp_path / 'target.npy',
             f'--average={mean}') == 2
  assert run('verify', flag) == 0
  assert run('remove', flag, 'mnli-seed0-step10000') == 0
  (library.folder / 'mnli-seed1-step10000' / 'prompt.safetensors').unlink()
  capsys.readouterr()
  assert run('verify', flag) == 1
  assert '2 prompts, 1 of them bad' in capsys.readouterr().out
  assert run('remove', flag, 'none') == 2
  assert run('add', flag, '--name=a', tmp_path, tmp_path) == 2
