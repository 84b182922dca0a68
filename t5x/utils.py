"""The names that published gin files spell as `utils.NAME`. No logic here."""

from t5x.checkpoints import CheckpointConfig
from t5x.checkpoints import RestoreCheckpointConfig
from t5x.checkpoints import SaveCheckpointConfig
from t5x.datasets import DatasetConfig
from t5x.datasets import get_dataset
from t5x.datasets import get_training_eval_datasets
from t5x.datasets import get_vocabulary
from t5x.datasets import import_module
from t5x.datasets import round_vocab_size_to_multiple
from t5x.datasets import verify_model_vocabs as verify_matching_vocabs
from t5x.optimizers import LearningRateCallable
from t5x.schedules import create_learning_rate_scheduler

__all__ = [
    'CheckpointConfig',
    'DatasetConfig',
    'LearningRateCallable',
    'RestoreCheckpointConfig',
    'SaveCheckpointConfig',
    'create_learning_rate_scheduler',
    'get_dataset',
    'get_training_eval_datasets',
    'get_vocabulary',
    'import_module',
    'round_vocab_size_to_multiple',
    'verify_matching_vocabs',
]
