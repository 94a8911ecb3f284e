#!/usr/bin/env bash
# Evaluate on several GPUs of one or more machines.
# usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500] dist_test.sh CONFIG CHECKPOINT GPUS [FLAGS]
# GPUS counts one machine's; the flags are those of test.py.
set -euo pipefail
if (($# < 3)); then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CONFIG=$1
CHECKPOINT=$2
GPUS=$3

# A checkout beside the tools comes before an installed package.
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec python -m torch.distributed.run \
    --nnodes "${NNODES:-1}" \
    --node-rank "${NODE_RANK:-0}" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" \
    --master-port "${PORT:-29500}" \
    --nproc-per-node "$GPUS" \
    "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
