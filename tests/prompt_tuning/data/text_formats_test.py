"""The exact text of every format, in graph mode."""

from prompt_tuning.data import preprocessors
from prompt_tuning.data import text_formats
from prompt_tuning.recycling.data import preprocessors as recycling
from prompt_tuning.spot.data import preprocessors as spot
import pytest
import tensorflow as tf

RECORD = {
    'query': 'The @placeholder won.', 'entities': ['Lions', 'Bears'],
    'answers': ['Bears', 'Lions'], 'idx': {'passage': 3, 'query': 7},
    'passage': 'A game was played.\n@highlight\nBears win\n@highlight\n'
               'They said "yes"\n@highlight\nEnd'}
RECORD_INPUTS = (
    'record query: The @placeholder won. entities: Lions, Bears passage: '
    'A game was played. Bears win. They said "yes" End')
RECORD_INDEX = {'idx/passage': 3, 'idx/query': 7}
WSC = {'text': 'Ann told Eve that she had won .', 'span1_text': 'Eve',
       'span2_text': 'she', 'span2_index': 4, 'label': 0, 'idx': 5}
PONY = ('The boy continued to whip the pony , and eventually the pony threw '
        'him over. John laughed out quite loud. "Good for him," he said. ')
PEBBLE = (
    'When they had eventually calmed down a bit , and had gotten home, Mr. '
    'Farley put the magic pebble in an iron safe . Some day they might want to '
    'use it , but really for now, what more could they wish for?')
SQUAD = {
    'id': '56be', 'context': 'It began in  May.\nRock-and-roll!',
    'question': 'When (exactly)?', 'title': 'T',
    'answers': {'text': ['in May.', 'May'], 'answer_start': [9, 13]}}
SQUAD_TEXTS = {
    'context': 'It began in May . Rock - and - roll ! ',
    'question': 'When ( exactly ) ? ', 'answers': ['in May . ', 'May']}
TEXTS = {'sentence1': 'A  b.', 'sentence2': 'C', 'label': 1, 'idx': 9}

# Preprocessor, its options, an example, what it becomes.
CASES = {
    'glue sorts its texts and leaves them as they are': (
        text_formats.glue,
        {'benchmark_name': 'mrpc', 'label_names': ['no', 'yes']},
        {'c': '3', 'e': '5', 'b': '2 .', 'd': '4', 'a': '1  1', 'label': 1,
         'idx': 9},
        {'inputs': 'mrpc a: 1  1 b: 2 . c: 3 d: 4 e: 5', 'targets': 'yes',
         'idx': 9}),
    'glue in the order named, with no label': (
        text_formats.glue,
        {'benchmark_name': 'wic', 'label_names': ('False', 'True'),
         'feature_names': ('sentence1', 'sentence2', 'word')},
        TEXTS | {'word': 'w', 'pos': 'N', 'start1': 1, 'label': -1},
        {'inputs': 'wic sentence1: A  b. sentence2: C word: w',
         'targets': '<unk>', 'idx': 9}),
    'glue without an index': (
        text_formats.glue,
        {'benchmark_name': 'x', 'label_names': ['a'], 'id_key': None},
        {'text': 't', 'label': 0}, {'inputs': 'x text: t', 'targets': 'a'}),
    'glue with another index': (
        text_formats.glue,
        {'benchmark_name': 'x', 'label_names': ['a'], 'id_key': 'id'},
        {'text': 't', 'label': 0, 'id': 4},
        {'inputs': 'x text: t', 'targets': 'a', 'idx': 4}),
    'multirc has no markup': (
        text_formats.glue,
        {'benchmark_name': 'multirc', 'label_names': ('False', 'True'),
         'feature_names': ('question', 'answer', 'paragraph')},
        {'paragraph': '<b>Sent 1: </b>Hi.<br>', 'question': 'Who?',
         'answer': 'He', 'label': 1,
         'idx': {'paragraph': 1, 'question': 2, 'answer': 3}},
        {'inputs': 'multirc question: Who? answer: He paragraph: Sent 1: Hi. ',
         'targets': 'True', 'idx/paragraph': 1, 'idx/question': 2,
         'idx/answer': 3}),
    'stsb rounds to a fifth': (
        text_formats.stsb, {}, TEXTS | {'label': 3.7499},
        {'inputs': 'stsb sentence1: A  b. sentence2: C', 'targets': '3.8',
         'idx': 9}),
    'stsb rounds down, too': (
        text_formats.stsb, {}, TEXTS | {'label': 4.09},
        {'inputs': 'stsb sentence1: A  b. sentence2: C', 'targets': '4.0',
         'idx': 9}),
    'squad pads punctuation': (
        text_formats.squad, {}, SQUAD,
        {'inputs': 'question: When ( exactly ) ? context: It began in May . '
                   'Rock - and - roll ! ',
         'targets': 'in May . ', 'id': '56be', **SQUAD_TEXTS}),
    'squad from memory': (
        text_formats.squad, {'include_context': False}, SQUAD,
        {'inputs': 'squad trivia question: When ( exactly ) ? ',
         'targets': 'in May . ', 'id': '56be', **SQUAD_TEXTS}),
    'summarize': (
        text_formats.summarize,
        {'article_key': 'document', 'summary_key': 'gist'},
        {'document': 'Long.\nText', 'gist': 'Short'},
        {'inputs': 'summarize: Long.\nText', 'targets': 'Short'}),
    'translate': (
        text_formats.translate,
        {'source_language': 'en', 'target_language': 'de'},
        {'en': 'That  is good.', 'de': 'Das ist gut.'},
        {'inputs': 'translate English to German: That  is good.',
         'targets': 'Das ist gut.'}),
    'rekey': (
        text_formats.rekey, {'key_map': {'inputs': None, 'targets': 'text'}},
        {'text': 'T', 'url': 'U'}, {'inputs': '', 'targets': 'T'}),
    'rekey of nothing': (text_formats.rekey, {}, {'a': 'T'}, {'a': 'T'}),
    'record without an answer': (
        text_formats.record, {}, RECORD | {'answers': []},
        {'inputs': RECORD_INPUTS, 'targets': '<unk>', 'answers': [],
         **RECORD_INDEX}),
    'wsc marks the pronoun at its place': (
        text_formats.wsc_simple, {},
        WSC | {'text': 'If she is Ann she is .', 'span2_index': 1},
        {'inputs': 'wsc: If *she* is Ann she is .', 'targets': 'Eve',
         'label': 0, 'idx': 5}),
    'wsc whose pronoun is followed by a comma': (
        text_formats.wsc_simple, {},
        WSC | {'text': PONY, 'span2_text': 'him', 'span2_index': 22},
        {'inputs': f'wsc: {PONY[:-1]}'.replace('for him,"', 'for *him* ,"'),
         'targets': 'Eve', 'label': 0, 'idx': 5}),
    'wsc whose pronoun is one word further': (
        text_formats.wsc_simple, {},
        WSC | {'text': PEBBLE, 'span2_text': 'it', 'span2_index': 34},
        {'inputs': f'wsc: {PEBBLE}'.replace('use it ,', 'use *it* ,'),
         'targets': 'Eve', 'label': 0, 'idx': 5}),
    'dpr marks the first pronoun only': (
        text_formats.definite_pronoun_resolution_simple, {},
        {'sentence': 'Bob asked Tom if he can lend, he said.', 'pronoun': 'he',
         'candidates': ['Bob', 'Tom'], 'label': 1},
        {'inputs': 'wsc: Bob asked Tom if *he* can lend, he said.',
         'targets': 'Tom'}),
    'dpr before a full stop': (
        text_formats.definite_pronoun_resolution_simple, {'label': 'dpr:'},
        {'sentence': 'The cat saw them.', 'pronoun': 'them',
         'candidates': ['a', 'b'], 'label': 0},
        {'inputs': 'dpr: The cat saw *them*.', 'targets': 'a'}),
    'mrqa': (
        preprocessors.mrqa, {},
        {'qid': 'q', 'question': 'Who?', 'context': '[TLE] I', 'subset': 'S',
         'answers': ["I'm", 'me']},
        {'idx': 'q', 'inputs': 'question: Who ? context: [ TLE ] I',
         'targets': "I ' m", 'answer': "I ' m", 'answers': ["I ' m", 'me'],
         'question': 'Who ? ', 'context': ' [ TLE ] I'}),
    'mrqa of a named dataset': (
        preprocessors.mrqa, {'task_name': 'squad'},
        {'qid': 'q', 'question': 'Who?', 'context': 'I', 'answers': ['me']},
        {'idx': 'q', 'inputs': 'squad question: Who ? context: I',
         'targets': 'me', 'answer': 'me', 'answers': ['me'],
         'question': 'Who ? ', 'context': 'I'}),
    'generation': (
        preprocessors.preprocess_text_generation,
        {'source_key': 'a', 'target_key': 'b', 'task_name': 'aeslc',
         'prefix': 'summarize:'},
        {'a': 'Dear  all', 'b': 'Hi'},
        {'inputs': 'aeslc summarize: Dear  all', 'targets': 'Hi'}),
    'generation from fields within fields': (
        preprocessors.preprocess_text_generation,
        {'source_key': 'x', 'source_nested_key': 'a', 'target_key': 'x',
         'target_nested_key': 'b'},
        {'x': {'a': 'A', 'b': 'B'}}, {'inputs': 'A', 'targets': 'B'}),
    'the first word is removed': (
        preprocessors.remove_first_text_token, {},
        {'inputs': ' record query: q', 'targets': 'a b'},
        {'inputs': 'record query: q', 'targets': 'a b'}),
    'the first word of another field': (
        preprocessors.remove_first_text_token, {'key': 'targets'},
        {'inputs': 'a b c', 'targets': 'a b c'},
        {'inputs': 'a b c', 'targets': 'b c'}),
    'a single word is kept': (
        preprocessors.remove_first_text_token, {}, {'inputs': 'one'},
        {'inputs': 'one'}),
    'spot pair': (
        spot.preprocess_text_classification,
        {'text_a_key': 'hypothesis', 'text_b_key': 'premise',
         'task_name': 'snli', 'label_names': ['yes', 'maybe', 'no']},
        {'hypothesis': 'A  b', 'premise': 'C', 'label': 2},
        {'inputs': 'snli hypothesis: A b premise: C', 'targets': 'no'}),
    'spot with no label': (
        spot.preprocess_text_classification,
        {'text_a_key': 't', 'label_names': ['yes', 'no']},
        {'t': 'x', 'label': -1}, {'inputs': 't: x', 'targets': '<unk>'}),
    'spot with a label that is a text': (
        spot.preprocess_text_classification,
        {'text_a_key': 't', 'label_names': ['yes', 'no']},
        {'t': 'x', 'label': '1'}, {'inputs': 't: x', 'targets': 'no'}),
    'spot without label words': (
        spot.preprocess_text_classification, {'text_a_key': 't'},
        {'t': 'x', 'label': 3}, {'inputs': 't: x', 'targets': '3'}),
    'recycling labels': (
        recycling.label_idx_to_string, {'label_names': ['0', '1']},
        {'text': 'x', 'label': 1}, {'text': 'x', 'label': '1'}),
    'recycling with no label': (
        recycling.label_idx_to_string,
        {'label_names': ['0', '1'], 'key': 'l', 'unk_value': 5},
        {'l': 5}, {'l': 'UNK'}),
    'fields that there are': (
        recycling.join_fields, {'fields': ('title', 'no', 'body')},
        {'title': 'T', 'body': 'B  c'},
        {'title': 'T', 'body': 'B  c', 'text': 'T B c'}),
    'recycled record': (
        recycling.record, {}, RECORD,
        {'inputs': RECORD_INPUTS, 'targets': 'Bears', 'answers':
         ['Bears', 'Lions'], 'entities': ['Lions', 'Bears'], **RECORD_INDEX}),
    'recycled record without an answer': (
        recycling.record, {}, RECORD | {'answers': []},
        {'inputs': RECORD_INPUTS, 'targets': '<unk>', 'answers': [],
         'entities': ['Lions', 'Bears'], **RECORD_INDEX}),
}


@pytest.mark.parametrize('case', CASES)
def test_exact_texts(case, mapped):
  preprocessor, options, example, expected = CASES[case]
  assert mapped(preprocessor, example, **options) == [expected]


def test_record_has_an_example_per_answer(mapped):
  both = {'inputs': RECORD_INPUTS, 'answers': RECORD['answers'], **RECORD_INDEX}
  assert mapped(text_formats.record, RECORD) == [
      both | {'targets': 'Bears'}, both | {'targets': 'Lions'}]


def test_wsc_is_trained_on_right_referents_only(mapped):
  right = WSC | {'label': 1, 'span1_text': 'Ann'}
  found = mapped(
      text_formats.wsc_simple, WSC, right, correct_referent_only=True)
  assert [x['targets'] for x in found] == ['Ann']
  assert len(mapped(text_formats.wsc_simple, WSC, right)) == 2


def test_wsc_with_a_wrong_index_is_an_error(mapped):
  with pytest.raises(tf.errors.InvalidArgumentError, match='span2_index'):
    mapped(text_formats.wsc_simple, WSC | {'span2_index': 3})


def test_a_label_outside_the_words_is_an_error(mapped):
  with pytest.raises(tf.errors.InvalidArgumentError, match='indices'):
    mapped(text_formats.glue, TEXTS | {'label': 2}, benchmark_name='x',
           label_names=['a', 'b'])


@pytest.mark.parametrize('preprocessor, options', [
    (text_formats.glue, {'benchmark_name': 'x', 'label_names': ['a'],
                         'feature_names': ['none']}),
    (text_formats.summarize, {'article_key': 'none', 'summary_key': 'a'}),
    (text_formats.rekey, {'key_map': {'inputs': 'none'}}),
    (preprocessors.preprocess_text_generation,
     {'source_key': 'none', 'target_key': 'a'}),
    (spot.preprocess_text_classification, {'text_a_key': 'none'}),
    (recycling.label_idx_to_string, {'label_names': ['a'], 'key': 'none'}),
])
def test_a_missing_field_is_named(preprocessor, options, mapped):
  with pytest.raises(ValueError, match=r"no field 'none'.*\['a', 'label'\]"):
    mapped(preprocessor, {'a': 'A', 'label': 0}, **options)


def test_a_language_without_a_name_is_an_error(mapped):
  with pytest.raises(ValueError, match=r"'xx' is not known.*'cs', 'de'"):
    mapped(text_formats.translate, {'en': 'A', 'xx': 'B'},
           source_language='en', target_language='xx')


def test_joining_none_of_the_fields_is_an_error(mapped):
  with pytest.raises(ValueError, match='none of'):
    mapped(recycling.join_fields, {'a': 'A'})


def test_tsv_of_questions():
  lines = tf.data.Dataset.from_tensors(
      '7\tA "quoted" text.\tWho?\tI|me.\tme.|||you')
  x, = preprocessors.preprocess_tsv_to_qa(lines).as_numpy_iterator()
  assert x.pop('answers').tolist() == [b'me . ', b'you']
  assert x == {
      'id': b'7', 'inputs': b'question: Who ? context: A " quoted " text . ',
      'targets': b'I | me . ', 'question': b'Who ? ',
      'context': b'A " quoted " text . ', 'answer': b'I | me . '}


def test_tsv_with_other_columns():
  lines = tf.data.Dataset.from_tensors('a;b~c;q;d')
  x, = preprocessors.preprocess_tsv_to_qa(
      lines, field_delim=';', answer_delim='~',
      field_names=['context', 'answers', 'question', 'answer']
  ).as_numpy_iterator()
  assert x['inputs'] == b'question: q context: a'
  assert x['targets'] == b'd' and x['answers'].tolist() == [b'b', b'c']
  with pytest.raises(ValueError, match="no field 'answers'"):
    preprocessors.preprocess_tsv_to_qa(lines, field_names=['a', 'b'])


class Detector:
  """Takes the first word for the language."""

  def find_language(self, text):
    assert isinstance(text, str)
    language, probability, reliable = text.split()
    return type('Found', (), {
        'language': language, 'probability': float(probability),
        'is_reliable': reliable == 'sure'})


def test_texts_of_other_languages_are_left_out():
  texts = ['de 0.95 sure', 'de 0.94 sure', 'de 0.99 not', 'fr 0.99 sure']
  ds = tf.data.Dataset.from_tensor_slices({'text': texts})
  found = preprocessors.filter_langid(ds, 'de', Detector())
  assert [x['text'] for x in found.as_numpy_iterator()] == [b'de 0.95 sure']
  assert found.element_spec == ds.element_spec


@pytest.mark.parametrize('mode, targets', [
    ('eval', ['Lions', 'Bears', 'Cats']), ('train', ['Lions', 'Bears'])])
def test_all_answers_of_record_are_right(mode, targets, mapped):
  example = RECORD | {'entities': ['Lions', 'Bears', 'Cats']}
  def ranked(ds):
    return recycling.rank_entities(recycling.record(ds), mode=mode)
  found = mapped(ranked, example)
  assert [x['targets'] for x in found] == targets
  assert [x['is_correct'] for x in found] == [
      x['targets'] != 'Cats' for x in found]
  assert {x['inputs'] for x in found} == {
      RECORD_INPUTS.replace('Bears passage', 'Bears, Cats passage')}
