"""What tasks give to a model: features in the vocabulary of its family.

SeqIO opens a vocabulary's file when it is first used, never at import. It calls
two vocabularies equal where their paths are, so these are the paths of
`configs/models/`.
"""

import seqio

_VOCABULARIES = 'gs://t5-data/vocabs'


def features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
  """Inputs, which a language model's tasks may lack, and targets.

  Args:
    vocabulary: of both.

  Returns:
    The features; both end with the end token.
  """
  return {'inputs': seqio.Feature(vocabulary, add_eos=True, required=False),
          'targets': seqio.Feature(vocabulary, add_eos=True)}


T5_FEATURES = features(seqio.SentencePieceVocabulary(
    f'{_VOCABULARIES}/cc_all.32000.100extra/sentencepiece.model'))
# By the prefix of a task's name.
MODEL_TO_FEATURES = {
    '': T5_FEATURES,
    'mt5_': features(seqio.SentencePieceVocabulary(
        f'{_VOCABULARIES}/mc4.250000.100extra/sentencepiece.model')),
    'byt5_': features(seqio.ByteVocabulary()),
}
