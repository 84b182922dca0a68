"""A small world to try prompt tuning in: a language, a model, tasks.

Everything is generated from a seed and needs no download, but nothing is
mocked: a real T5 1.1, a real SentencePiece vocabulary, real SeqIO tasks.
"""
