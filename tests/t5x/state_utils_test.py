import pytest
from t5x import state_utils

# A small model and a checkpoint of another one with a layer less.
WANTED = (
    'target/encoder/layers_0/kernel', 'target/encoder/layers_1/kernel',
    'target/encoder/prompt/prompt/prompt', 'target/head/kernel',
    'state/param_states/head/kernel/v')
AVAILABLE = (
    'target/encoder/layers_0/kernel', 'target/old_head/kernel',
    'target/prompts/task_a', 'target/prompts/task_b',
    'state/param_states/old_head/kernel/v')
LAYER_0, LAYER_1, PROMPT, HEAD, HEAD_V = WANTED


def resolve(*rules, wanted=WANTED, available=AVAILABLE):
  return state_utils.resolve_assignment_map(wanted, available, rules)


# Each row: the rules, and where every wanted name comes from in the end; names
# that are not in the row are not restored from anywhere.
@pytest.mark.parametrize('rules,expected', [
    # No rules: the names in common.
    ([], {LAYER_0: LAYER_0}),
    # A fixed source.
    ([(PROMPT, 'target/prompts/task_a')],
     {LAYER_0: LAYER_0, PROMPT: 'target/prompts/task_a'}),
    # Groups carry parts of the name over, by number and by name.
    ([(r'(.*)/head/(.*)', r'\1/old_head/\2')],
     {LAYER_0: LAYER_0, HEAD: 'target/old_head/kernel',
      HEAD_V: 'state/param_states/old_head/kernel/v'}),
    ([(r'(?P<before>target/)head/(?P<after>.*)',
       r'\g<before>old_head/\g<after>')],
     {LAYER_0: LAYER_0, HEAD: 'target/old_head/kernel'}),
    # None is a decision: not restored even though it is there.
    ([(r'.*layers_.*', None)], {LAYER_0: None, LAYER_1: None}),
    # One source feeds several.
    ([(r'(target/encoder/layers_)\d+/(.*)', r'\g<1>0/\2')],
     {LAYER_0: LAYER_0, LAYER_1: LAYER_0}),
    # The first rule that matches wins, in either order.
    ([(r'.*prompt.*', 'target/prompts/task_b'), (r'target/.*', None)],
     {PROMPT: 'target/prompts/task_b', LAYER_0: None, LAYER_1: None,
      HEAD: None}),
    ([(r'.*layers_1.*', LAYER_0), (r'.*layers.*', None), (r'.*', None)],
     {LAYER_0: None, LAYER_1: LAYER_0, PROMPT: None, HEAD: None,
      HEAD_V: None}),
    # The published rule for prompts.
    ([(r'^.*prompt.*$', None)], {LAYER_0: LAYER_0, PROMPT: None}),
])
def test_every_name_comes_from_where_the_rules_say(rules, expected):
  assert resolve(*rules) == expected
  assert resolve(*map(list, rules)) == expected


def test_no_map_is_an_empty_map():
  assert state_utils.resolve_assignment_map(
      WANTED, AVAILABLE, None) == resolve()


def test_a_rule_replaces_the_entry_of_the_same_name():
  available = (PROMPT, 'target/prompts/task_a')
  assert resolve((PROMPT, 'target/prompts/task_a'), wanted=[PROMPT],
                 available=available) == {PROMPT: 'target/prompts/task_a'}


# Sub-strings do not count: such rules match nothing and are refused.
@pytest.mark.parametrize('regex', [
    'prompt', 'target/encoder/prompt', 'encoder/.*', '.*/prompt/promp',
    'Target/.*', 'target/decoder/.*'])
def test_a_rule_must_match_a_whole_name(regex):
  with pytest.raises(ValueError, match=f'{regex}.*matches no parameter'):
    resolve((regex, None))


def test_a_rule_that_earlier_rules_leave_nothing_for_is_refused():
  with pytest.raises(ValueError, match=r'layers_1.*matches no parameter'):
    resolve((r'.*layers.*', None), (r'.*layers_1.*', None))


def test_an_unused_rule_is_refused_whatever_the_others_do():
  with pytest.raises(ValueError, match=r'promt.*matches no parameter'):
    resolve((r'.*promt.*', None), (r'.*prompt.*', None))


def test_a_rule_for_a_model_without_parameters_is_refused():
  with pytest.raises(ValueError, match=r'matches no parameter'):
    resolve(('.*', None), wanted=())


@pytest.mark.parametrize('rule,source,nearest', [
    ((PROMPT, 'target/prompt/task_a'), 'target/prompt/task_a',
     'target/prompts/task_a'),
    ((r'target/(head)/(.*)', r'target/oldhead/\2'), 'target/oldhead/kernel',
     'target/old_head/kernel'),
    ((HEAD_V, 'param_states/old_head/kernel/v'),
     'param_states/old_head/kernel/v', 'state/param_states/old_head/kernel/v'),
])
def test_a_missing_source_is_refused_with_the_nearest_names(
    rule, source, nearest):
  with pytest.raises(ValueError, match=f"'{source}'.*Nearest: '{nearest}'"):
    resolve(rule)


def test_a_checkpoint_without_entries_has_no_nearest_name():
  with pytest.raises(ValueError, match='Nearest: nothing'):
    resolve((PROMPT, 'target/prompt'), available=())


def test_nearest_names_are_few_and_the_best_comes_first():
  names = [f'target/layer_{i}/kernel' for i in range(20)]
  found = state_utils.nearest('target/layer_7/kernel', names).split(', ')
  assert len(found) == 3 and found[0] == "'target/layer_7/kernel'"


def test_rules_about_optimiser_states_are_let_pass():
  # T5X restores those states with the parameters; here they are not restored.
  assert resolve((r'^state/param_states/none/.*$', None)) == resolve()


MODEL = {'target': {'a': 0, 'b': 0, 'new': 0}}
CHECKPOINT = {'target': {'a': 1, 'old': 2, 'extra': 3}, 'state': {'step': 4}}


# T5X's meaning: what is moved or ruled out is gone, the rest stays.
@pytest.mark.parametrize('rules,target', [
    ([], {'a': 1, 'old': 2, 'extra': 3}),
    ([('target/b', 'target/old')], {'a': 1, 'b': 2, 'extra': 3}),
    ([('target/(b|new)', 'target/old')],
     {'a': 1, 'b': 2, 'new': 2, 'extra': 3}),
    ([('target/a', None)], {'old': 2, 'extra': 3}),
    ([('target/b', 'target/a')], {'a': 1, 'b': 1, 'old': 2, 'extra': 3}),
    ([('target/a', 'target/old'), ('target/b', 'target/a')],
     {'a': 2, 'b': 1, 'extra': 3}),
])
def test_apply_assignment_map(rules, target):
  result = state_utils.apply_assignment_map(CHECKPOINT, MODEL, rules)
  assert result == {'target': target, 'state': {'step': 4}}


def test_a_resuming_run_is_not_mapped():
  assert state_utils.apply_assignment_map(
      CHECKPOINT, MODEL, [('target/nothing', 'target/gone')],
      is_resuming=True) == CHECKPOINT


def test_rules_without_match_are_refused_unless_allowed():
  rules = [('target/nothing', None)]
  with pytest.raises(ValueError, match='target/nothing'):
    state_utils.apply_assignment_map(CHECKPOINT, MODEL, rules)
  assert state_utils.apply_assignment_map(
      CHECKPOINT, MODEL, rules, require_all_rules_match=False) == CHECKPOINT


def test_flatten_state_dict_stops_at_specs_of_arrays():
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': 'a'}}
  tree = {'target': {'a': spec, 'empty': {}}, 'b': None}
  assert state_utils.flatten_state_dict(tree) == {'target/a': spec, 'b': None}
  assert 'target/empty' in state_utils.flatten_state_dict(
      tree, keep_empty_nodes=True)
