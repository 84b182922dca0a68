"""The sets of tasks that SPoT's experiments are made of.

Vu et al., SPoT: Better frozen model adaptation through soft prompt transfer,
ACL 2022: the source mixtures of section 2, the 16 source and 10 target tasks
of section 3. The paper names the mixtures and says how many datasets each has;
which they are is said here, task by task. Mixing is in proportion to the number
of examples, with the paper's limit K = 2^19.
"""

import itertools

from prompt_tuning.data import families
from prompt_tuning.spot.data import c4
from prompt_tuning.spot.data import generation
from prompt_tuning.spot.data import glue
from prompt_tuning.spot.data import mrqa
from prompt_tuning.spot.data import multiple_choice
from prompt_tuning.spot.data import nli
from prompt_tuning.spot.data import qa
from prompt_tuning.spot.data import sentiment
from prompt_tuning.spot.data import summarization
from prompt_tuning.spot.data import super_glue
from prompt_tuning.spot.data import translation

# Imported for what they register.
FAMILIES = (c4, generation, glue, mrqa, multiple_choice, nli, qa, sentiment,
            summarization, super_glue, translation)

_MNLI = ('spot_glue_mnli_train_v200', 'spot_glue_mnli_validation_matched_v200',
         'spot_glue_mnli_validation_mismatched_v200')
_ANLI = tuple(f'spot_anli_{r}_v010' for r in ('r1', 'r2', 'r3'))
_WSC = ('spot_super_glue_wsc_v102_simple_train',
        'spot_super_glue_wsc_v102_simple_eval')

# By the paper's name; a dataset of several parts has several tasks.
SOURCES: dict[str, tuple[str, ...]] = {
    'c4': ('spot_c4_v220_prefix_lm',),
    'doc_nli': ('spot_doc_nli_v100',),
    'yelp_2': ('spot_yelp_polarity_v020',),
    'mnli': _MNLI,
    'qqp': ('spot_glue_qqp_v200',),
    'qnli': ('spot_glue_qnli_v200',),
    'record': ('spot_super_glue_record_v102',),
    'cxc': ('spot_crisscrossed_captions_v100',),
    'squad': ('spot_squad_v300',),
    'drop': ('spot_drop_v200',),
    'sst_2': ('spot_glue_sst2_v200',),
    'winogrande': ('spot_winogrande_v120',),
    'hellaswag': ('spot_hellaswag_v110',),
    'multirc': ('spot_super_glue_multirc_v102',),
    'cosmos_qa': ('spot_cosmos_qa_v100',),
    'race': multiple_choice.RACE,
}
TARGETS: dict[str, tuple[str, ...]] = {
    'boolq': ('spot_super_glue_boolq_v102',),
    'cola': ('spot_glue_cola_v200',),
    'sts_b': ('spot_glue_stsb_v200',),
    'wic': ('spot_super_glue_wic_v102',),
    'cr': ('spot_customer_reviews_v100',),
    'mrpc': ('spot_glue_mrpc_v200',),
    'rte': ('spot_super_glue_rte_v102',),
    'wsc': _WSC,
    'copa': ('spot_super_glue_copa_v102',),
    'cb': ('spot_super_glue_cb_v102',),
}


def _names(*datasets: families.Dataset) -> tuple[str, ...]:
  """The tasks of datasets."""
  return tuple(dataset.name for dataset in datasets)


# WNLI is left out, as usual: its validation set contradicts its training set.
_GLUE = tuple(
    f'spot_glue_{title}_v200'
    for title in ('cola', 'sst2', 'mrpc', 'qqp', 'stsb', 'qnli', 'rte')) + _MNLI
MIXTURES: dict[str, tuple[str, ...]] = {
    'glue': _GLUE,
    'super_glue': _names(*super_glue.DATASETS),
    'nli': (*_ANLI, 'spot_super_glue_cb_v102', 'spot_doc_nli_v100', *_MNLI,
            'spot_glue_qnli_v200', 'spot_glue_rte_v200', 'spot_snli_v110'),
    'paraphrase': ('spot_crisscrossed_captions_v100', 'spot_glue_mrpc_v200',
                   'spot_glue_qqp_v200', 'spot_glue_stsb_v200'),
    'sentiment': ('spot_customer_reviews_v100', 'spot_goemotions_v010',
                  'spot_sentiment140_v100', 'spot_glue_sst2_v200',
                  'spot_yelp_polarity_v020'),
    'mrqa': _names(*mrqa.DATASETS),
    'rainbow': ('spot_abductive_nli_v100', 'spot_cosmos_qa_v100',
                'spot_hellaswag_v110', 'spot_piqa_v100',
                'spot_social_i_qa_v100', 'spot_winogrande_v120'),
    'translation': _names(*translation.DATASETS),
    'summarization': (*_names(*summarization.DATASETS),
                      'spot_gem_wiki_lingua_english_en_v110'),
    'gem': _names(*generation.DATASETS),
}
MIXTURES['all'] = tuple(dict.fromkeys(itertools.chain(
    SOURCES['c4'], SOURCES['squad'], *MIXTURES.values())))

for _name, _tasks in MIXTURES.items():
  families.add_mixture(
      f'spot_{_name}_mixture',
      dict.fromkeys(_tasks, families.ExamplesProportional()))
