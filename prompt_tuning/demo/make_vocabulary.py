"""Trains the demo's SentencePiece vocabulary on the demo's language.

python -m prompt_tuning.demo.make_vocabulary
"""

import contextlib
import io
import pathlib
import random
import tempfile

from absl import app
from absl import flags
from prompt_tuning.demo import pretraining
from prompt_tuning.demo import tasks
import sentencepiece

_FILE = flags.DEFINE_string(
    'vocabulary_file', str(tasks.VOCABULARY_FILE), 'File to write.')
# Enough merges for every word of the language to be one piece.
_PIECES = 800


def corpus(lines: int = 20_000) -> list[str]:
  """Texts and instructions of pretraining, and the label words of the tasks."""
  rng = random.Random('vocabulary')
  text = [pretraining.sentences(rng) for _ in range(lines)]
  for _ in range(lines // 10):
    text.append(' '.join(pretraining.instruction(rng)))
  for task in (*tasks.SOURCES, *tasks.TARGETS):
    text += [f'premise hypothesis and {" ".join(task.labels)}'] * 50
  return text


def train() -> bytes:
  """The serialised model; as in T5, 0 pads, 1 ends a text, 2 is unknown."""
  model = io.BytesIO()
  # Any rule will do; without one the library warns when it loads the model. The
  # model holds the name of the file, so that it must be the same each time.
  with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    rules = pathlib.Path('rules.tsv')
    rules.write_text('3000\t20\n')  # Ideographic space to space.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model,
        model_type='bpe', vocab_size=_PIECES,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        num_threads=1,  # For the same result each time.
        normalization_rule_tsv=str(rules), minloglevel=2)
  return model.getvalue()


def main(argv: list[str]) -> None:
  """Writes the file."""
  del argv
  path = pathlib.Path(_FILE.value)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(train())


if __name__ == '__main__':
  app.run(main)
