#!/usr/bin/env bash
# The command that every launch file here runs, once per process. It trains a
# prompt; give it again and it goes on where the last save was. Further flags
# are passed on, and win.
set -euo pipefail
: "${TASK:?the SeqIO task or mixture}"
: "${TASK_MODULE:?the Python module that registers it}"
: "${MODEL_DIR:?the folder of the run, which all processes can write to}"

exec python -m t5x.train \
  --gin_file="models/${MODEL:-t5_1_1_base}_prompt.gin" \
  --gin_file=prompts/from_sampled_vocab.gin \
  --gin_file=runs/prompt_finetune.gin \
  --gin.MIXTURE_OR_TASK_NAME="$TASK" \
  --gin.MIXTURE_OR_TASK_MODULE="$TASK_MODULE" \
  --gin.TASK_FEATURE_LENGTHS="{'inputs': 512, 'targets': 16}" \
  --gin.INITIAL_CHECKPOINT_PATH=gs://t5-data/pretrained_models/t5x/t5_1_1_lm100k_base/checkpoint_1100000 \
  --gin.USE_CACHED_TASKS=False \
  --gin.TRAIN_STEPS=1_130_000 \
  --gin.MODEL_DIR="$MODEL_DIR" \
  "$@"
