#!/usr/bin/env bash
# TASK=... TASK_MODULE=... MODEL_DIR=... \
#   examples/launch/tpu_pod.sh NAME ZONE [flags of t5x.train]
#
# Starts the command on every host of a TPU slice, where this checkout is in
# ~/spot and installed with the extra `tpu`. The hosts find each other by the
# metadata of the slice. MODEL_DIR is a folder that all of them have mounted, of
# Filestore or of a bucket by Cloud Storage FUSE.
set -euo pipefail
name=${1:?the name of the TPU} zone=${2:?its zone}
shift 2

quoted() { printf '%q ' "$@"; }
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$(
  echo -n 'cd ~/spot && '
  quoted env TASK="${TASK:?}" TASK_MODULE="${TASK_MODULE:?}" \
    MODEL_DIR="${MODEL_DIR:?}" MODEL="${MODEL:-t5_1_1_base}" bash examples/launch/train_prompt.sh "$@")"
