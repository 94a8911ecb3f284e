#!/usr/bin/env bash
# Train on a Slurm cluster.
# usage: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=...] slurm_train.sh PARTITION JOB_NAME CONFIG [FLAGS]
# GPUS counts all machines'; the flags are those of train.py.
set -euo pipefail
if (($# < 3)); then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
# Several srun options in one variable: split at spaces.
read -ra SRUN_OPTIONS <<<"${SRUN_ARGS:-}"

# A checkout beside the tools comes before an installed package.
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec srun \
    --partition "$PARTITION" \
    --job-name "$JOB_NAME" \
    --gres "gpu:$GPUS_PER_NODE" \
    --ntasks "$GPUS" \
    --ntasks-per-node "$GPUS_PER_NODE" \
    --cpus-per-task "${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_OPTIONS[@]+"${SRUN_OPTIONS[@]}"} \
    python -u "$TOOLS/train.py" "$CONFIG" --launcher slurm "${@:4}"
