"""The vocabulary that a folder of Hugging Face brings, for gin."""

import pathlib

import seqio
from t5x import datasets
from t5x import hugging_face
from t5x import hugging_face_config
from t5x import untrusted_files

# Sentinels that tokenizers put behind the pieces of the file. Those of mT5 are
# pieces themselves.
_EXTRA_IDS = {'t5': 100, 'mt5': 0}
_SENTINELS = ('<extra_id_0>', '\u2581<extra_id_0>')
# ByT5 has no file: three special ids, the bytes, 125 sentinels.
_BYT5_TOKENIZER, _BYT5_ROWS = 'ByT5Tokenizer', 384


def of_model(path: str, extra_ids: int | None = None) -> seqio.Vocabulary:
  """The vocabulary of a model, with the ids that it was trained with.

  Args:
    path: a local folder, or `hf:owner/name[@revision]`.
    extra_ids: sentinels at its end; None takes those of its family, 100 for
      T5 and Flan-T5, and none if the file has them as pieces.

  Returns:
    The folder's SentencePiece vocabulary, or bytes for ByT5.

  Raises:
    DatasetError: if the folder has none that can be read.
  """
  folder = hugging_face.local_folder(path, weights=False)
  try:
    config = hugging_face_config.read_json(folder)
    file = untrusted_files.inside(folder, hugging_face.SPIECE)
  except ValueError as error:
    raise datasets.DatasetError(str(error)) from error
  if file.is_file():
    if extra_ids is None:
      extra_ids = _extra_ids(str(file), str(config.get('model_type')))
    return seqio.SentencePieceVocabulary(str(file.absolute()), extra_ids)
  if (config.get('tokenizer_class') == _BYT5_TOKENIZER
      or config.get('vocab_size') == _BYT5_ROWS):
    return seqio.ByteVocabulary(extra_ids or 0)
  raise datasets.DatasetError(
      f'{pathlib.Path(folder) / hugging_face.SPIECE} does not exist. Other '
      'forms of a tokenizer are not read: copy that file from the model that '
      'this one was made of, or set VOCABULARY.')


def _extra_ids(file: str, family: str) -> int:
  """The sentinels of a family, unless a file has them already."""
  wanted = _EXTRA_IDS.get(family, 0)
  if wanted:
    pieces = seqio.SentencePieceVocabulary(file, 0).tokenizer
    if any(pieces.piece_to_id(sentinel) != pieces.unk_id()
           for sentinel in _SENTINELS):
      return 0
  return wanted
