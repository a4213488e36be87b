#!/usr/bin/env bash
# Train on several devices of one or more machines:
#   tools/dist_train.sh CONFIG NUMBER_OF_DEVICES [options of tools/train.py]
# Variables: NNODES, NODE_RANK, MASTER_ADDR, PORT, PYTHON. Without an accelerator it starts CPU processes (gloo).
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
HERE="$(cd "$(dirname "$0")" && pwd)"
PYTHONPATH="$HERE/..${PYTHONPATH:+:$PYTHONPATH}" \
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$2" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$HERE/train.py" "$1" --launcher pytorch "${@:3}"
