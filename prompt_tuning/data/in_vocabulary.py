"""A registered task in another vocabulary: `runs/in_vocabulary.gin`.

Registered tasks read T5's vocabularies from `gs://t5-data`. A model that brings
its own, such as a folder of Hugging Face, needs the same texts in that one.
"""

from collections.abc import Mapping
import dataclasses
import hashlib

import seqio
from t5x import datasets


def task(
    name: str, vocabulary: seqio.Vocabulary, module: str | None = None) -> str:
  """Registers a task or mixture in another vocabulary.

  Args:
    name: of the task or mixture.
    vocabulary: of all of its texts; features that are no text stay.
    module: imported first, for the tasks that it registers.

  Returns:
    The name: the given one, and eight digits of what the vocabulary holds, so
    that no cache of another vocabulary is taken for its.

  Raises:
    DatasetError: if nothing is registered under the name.
  """
  datasets.import_module(module)
  provider = datasets.provider_of(name)
  ending = f'_in_{_digits(vocabulary)}'

  def changed(part: seqio.Task) -> str:
    copy = part.replace(
        name=part.name + ending,
        output_features=_features(part.output_features, vocabulary))
    if copy.name in seqio.TaskRegistry.names():
      seqio.TaskRegistry.remove(copy.name)  # The same, for an equal vocabulary.
    seqio.TaskRegistry.add_provider(copy.name, copy)
    return copy.name

  if isinstance(provider, seqio.Task):
    return changed(provider)
  whole = provider.name + ending
  if whole in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.remove(whole)
  seqio.MixtureRegistry.add(whole, [
      (changed(part), provider.get_rate(part))
      for part in seqio.get_subtasks(provider)])
  return whole


def _features(
    features: Mapping[str, seqio.Feature], vocabulary: seqio.Vocabulary
) -> dict[str, seqio.Feature]:
  """Features whose texts are in another vocabulary."""
  return {
      name: feature
      if isinstance(feature.vocabulary, seqio.PassThroughVocabulary)
      else dataclasses.replace(feature, vocabulary=vocabulary)
      for name, feature in features.items()}


def _digits(vocabulary: seqio.Vocabulary) -> str:
  """Names what a vocabulary holds, wherever its file is."""
  content = getattr(vocabulary, 'sp_model', b'')
  kind = f'{type(vocabulary).__name__}:{vocabulary.extra_ids}'
  return hashlib.sha256(kind.encode() + content).hexdigest()[:8]
