"""Names of fields and label words, as published."""

# Fields of examples, as tokens and as the text they were made of.
INPUT_FIELD = 'inputs'
INPUT_TEXT = 'inputs_pretokenized'
TARGET_FIELD = 'targets'
TARGET_TEXT = 'targets_pretokenized'

# Fields of question answering.
CONTEXT_TEXT = 'context'
QUESTION_TEXT = 'question'
ANSWERS_TEXT = 'answers'

# What was predicted, and the text that it was read from.
PREDICTION = 'prediction'
PREDICTION_TEXT = 'prediction_pretokenized'

EXTRA_ID_0 = '<extra_id_0>'
# The target of an example that has no label.
UNKNOWN = '<unk>'

# The words in which the labels of MRPC and QQP differ.
EQUIVALENT = 'equivalent'
DUPLICATE = 'duplicate'
