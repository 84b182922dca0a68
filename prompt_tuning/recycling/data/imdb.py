"""IMDb with two pairs of label words; the input is the review alone."""

import functools

from prompt_tuning.data import families
from prompt_tuning.data import metrics
from prompt_tuning.data import rank_classification
from prompt_tuning.data import text_formats
from prompt_tuning.recycling.data import metrics as recycling_metrics
from prompt_tuning.recycling.data import preprocessors


def _row(labels: tuple[str, str]) -> families.Dataset:
  """IMDb with other label words."""
  return families.Dataset(
      name=f'pr:imdb_v100_{"_".join(labels)}_verbalizers',
      tfds='imdb_reviews/plain_text:1.0.0',
      text=(
          functools.partial(
              preprocessors.label_idx_to_string, label_names=labels),
          functools.partial(
              text_formats.rekey,
              key_map={'inputs': 'text', 'targets': 'label'})),
      title='imdb',
      labels=labels,
      postprocess=families.class_id(labels),
      metrics=(metrics.accuracy,))


_ranked = functools.partial(
    rank_classification.rank_classification_metric, num_classes=2)
_normed = functools.partial(
    recycling_metrics.prefix_metric_names,
    metric_fn=functools.partial(_ranked, normalize_by_target_length=True),
    metric_prefix='normed')
# With the metrics of ranking; only numbers are ranked by length, too.
DATASETS = ((_row(('0', '1')), (_ranked, _normed)),
            (_row(('negative', 'positive')), (_ranked,)))

for _dataset, _scores in DATASETS:
  _name = _dataset.name
  _test = {'validation': 'test'}
  families.add_uncached(f'{_name}_train', _dataset, families.held_out(1000))
  families.add_uncached(f'{_name}_test', _dataset, _test)
  families.add_uncached(
      f'{_name}_test_rc', families.ranked(_dataset, *_scores), _test)
  _evaluated = [f'{_name}_test', f'{_name}_test_rc']
  families.add_mixture(f'{_name}_eval', _evaluated)
  families.add_mixture(_name, [f'{_name}_train', *_evaluated])
