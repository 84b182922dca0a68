"""One table of laws over all measures, and each against its definition."""

import itertools

import numpy as np
from prompt_tuning import numpy_files
from prompt_tuning.spot import similarity
import pytest

RNG = np.random.default_rng(0)
K, P, H = 4, 9, 24
PROMPTS = [RNG.normal(1.0, 2.0, (P, H)) for _ in range(K)]
LONGER = [RNG.normal(1.0, 2.0, (P + 3, H)) for _ in range(2)]
# Measures of which a prompt is wholly like itself.
REFLEXIVE = ('average_tokens', 'matched_tokens', 'subspaces')
MEASURES = pytest.mark.parametrize('name', similarity.MEASURES)


def cosine(a, b):
  return a @ b / np.sqrt((a @ a) * (b @ b))


def definition_of_average_tokens(a, b):
  return cosine(a.mean(0), b.mean(0))


def definition_of_token_pairs(a, b):
  return np.mean([[cosine(x, y) for y in b] for x in a])


def definition_of_matched_tokens(a, b):
  short, long = sorted((a, b), key=len)
  return max(
      np.mean([cosine(x, long[j]) for x, j in zip(short, order, strict=True)])
      for order in itertools.permutations(range(len(long)), len(short)))


def definition_of_subspaces(a, b):
  """By projectors, and principal directions as eigenvectors."""
  def projector(x):
    _, vectors = np.linalg.eigh(x.T @ x)
    return vectors[:, -8:] @ vectors[:, -8:].T

  return np.trace(projector(a) @ projector(b)) / 8


@MEASURES
def test_definition(name):
  size = 5 if name == 'matched_tokens' else 9
  a, b = PROMPTS[0][:size], LONGER[0][:size + 1]
  ((found,),) = similarity.MEASURES[name]([a], [b])
  expected = globals()[f'definition_of_{name}'](a, b)
  assert found == pytest.approx(expected, abs=1e-12)
  assert abs(expected) > 0.01


@MEASURES
def test_all_pairs_at_once(name):
  measure = similarity.MEASURES[name]
  found = measure(PROMPTS)
  assert found.shape == (K, K)
  np.testing.assert_allclose(found, found.T, atol=1e-12)
  np.testing.assert_allclose(found, measure(PROMPTS, PROMPTS), atol=1e-12)
  across = measure(PROMPTS, LONGER)
  assert across.shape == (K, 2)
  np.testing.assert_allclose(across.T, measure(LONGER, PROMPTS), atol=1e-12)
  for i, j in np.ndindex(K, 2):
    ((one,),) = measure([PROMPTS[i]], [LONGER[j]])
    assert across[i, j] == pytest.approx(one, abs=1e-12)


@MEASURES
def test_length_of_tokens_as_a_whole_does_not_matter(name):
  measure = similarity.MEASURES[name]
  scaled = [1e4 * PROMPTS[0], 1e-4 * PROMPTS[1]]
  np.testing.assert_allclose(
      measure(scaled), measure(PROMPTS[:2]), atol=1e-10)


@MEASURES
def test_order_of_tokens_does_not_matter(name):
  measure = similarity.MEASURES[name]
  shuffled = [RNG.permutation(prompt) for prompt in PROMPTS]
  np.testing.assert_allclose(
      measure(shuffled, LONGER), measure(PROMPTS, LONGER), atol=1e-10)


@MEASURES
def test_rotation_of_the_space_does_not_matter(name):
  measure = similarity.MEASURES[name]
  turn, _ = np.linalg.qr(RNG.normal(size=(H, H)))
  np.testing.assert_allclose(
      measure([p @ turn for p in PROMPTS]), measure(PROMPTS), atol=1e-10)


@MEASURES
def test_likeness_to_itself(name):
  own = np.diagonal(similarity.MEASURES[name](PROMPTS))
  if name in REFLEXIVE:
    np.testing.assert_allclose(own, 1, atol=1e-12)
  else:
    assert (own > 0).all() and (own < 0.9).all()


@MEASURES
def test_opposite_prompt(name):
  ((found,),) = similarity.MEASURES[name]([PROMPTS[0]], [-PROMPTS[0]])
  ((same,),) = similarity.MEASURES[name]([PROMPTS[0]], [PROMPTS[0]])
  if name in ('average_tokens', 'token_pairs'):
    assert found == pytest.approx(-same)
  elif name == 'subspaces':
    assert found == pytest.approx(same)
  else:
    assert found < 0.5


@MEASURES
def test_range(name):
  found = similarity.MEASURES[name]([*PROMPTS, *LONGER])
  assert (np.abs(found) <= 1).all()
  assert len(np.unique(np.round(found, 9))) > K


@MEASURES
@pytest.mark.parametrize('prompts, message', [
    ([], 'no prompts'),
    ([np.ones((2, 3)), np.ones((2, 4))], 'prompt 1 has width 4, prompt 0 3'),
    ([np.ones(3)], r'prompt 0 has shape \[3\]'),
    ([np.ones((0, 3))], r'prompt 0 has shape \[0, 3\]'),
    ([np.full((2, 3), np.nan)], 'prompt 0 has values'),
])
def test_bad_prompts_are_named(name, prompts, message):
  with pytest.raises(ValueError, match=message):
    similarity.MEASURES[name](prompts)


@MEASURES
def test_no_others_are_named(name):
  with pytest.raises(ValueError, match='no other prompts'):
    similarity.MEASURES[name](PROMPTS, [])


@MEASURES
def test_prompts_may_be_one_array(name):
  stacked = np.stack(PROMPTS)
  np.testing.assert_array_equal(
      similarity.MEASURES[name](stacked, stacked[:2]),
      similarity.MEASURES[name](PROMPTS, PROMPTS[:2]))


@pytest.mark.parametrize('name', [
    'average_tokens', 'token_pairs', 'matched_tokens'])
def test_a_prompt_of_zeros_has_no_direction(name):
  with pytest.raises(ValueError, match='no direction'):
    similarity.MEASURES[name]([np.zeros((2, 3))])


def test_a_prompt_of_few_dimensions_has_no_subspace_of_more():
  with pytest.raises(ValueError, match='spans 1 dimensions'):
    similarity.subspaces([np.ones((20, 30))])


def test_random_subspaces_overlap_by_chance():
  found = similarity.subspaces(
      [RNG.normal(size=(20, 200)) for _ in range(30)])
  assert found[np.triu_indices(30, 1)].mean() == pytest.approx(
      8 / 200, rel=0.1)


def test_thousands_of_prompts():
  many = RNG.normal(size=(3000, 4, 8))
  for measure in (similarity.average_tokens, similarity.token_pairs):
    assert measure(many).shape == (3000, 3000)


def test_released_prompts(shared_data):
  rte, sst2 = (numpy_files.read(str(
      shared_data / 'pretrained_prompts' / f'{name}.npy'))
               for name in ('rte', 'sst2'))
  assert similarity.average_tokens([rte, sst2])[0, 1] == pytest.approx(
      0.518, abs=5e-4)
  assert similarity.token_pairs([rte, sst2])[0, 1] == pytest.approx(
      0.017, abs=5e-4)
