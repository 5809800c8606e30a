#!/usr/bin/env bash
# Continued pretraining on several machines with DeepSpeed's launcher; under Slurm, take train.slurm. The published run for
# LLaMA-13B had 3 nodes of 8 V100. Its hostfile:
#
#   node1 slots=8
#   node2 slots=8
#   node3 slots=8
#
# With ssh, once, on one of the nodes; it needs pdsh there, and ssh without a question to every node, itself included:
#
#   MODEL=/shared/llama-13b DATA=/shared/corpus/all OUT=/shared/runs/zh HOSTFILE=hostfile PRECISION=fp16 \
#       BLOCK_SIZE=1024 MICRO_BATCH=20 ACCUMULATION=3 LEARNING_RATE=1.5e-5 bash pretrain/scripts/train_multinode.sh
#
# Without ssh, the same line on every node within some minutes, with the number of its line in the hostfile, from 0:
#
#   NODE_RANK=0 MASTER_ADDR=10.0.0.1 MODEL=… bash pretrain/scripts/train_multinode.sh      and NODE_RANK=1 on the next
#
# A step there: 24 ranks x micro batch 20 x accumulation 3 = 1440 rows of 1024 tokens, 1.5 million. Where 20 rows do not
# fit, MICRO_BATCH=3 ACCUMULATION=20 is the same step: 24 x 3 x 20. pretrain/plan.py finds the largest that fits.
#
# HOSTFILE     (hostfile) `name slots=GPUs` for each node, in the order of the ranks; a name may occur once
# MASTER_ADDR  an address of the first node that all others reach. With ssh it is by default the first that `hostname -I`
#              prints there, which may be of a container's bridge or a slow network: then name the right one
# MASTER_PORT  (29500) a port that is free there, the same for all nodes
# SSH_PORT     (ssh's own) of all nodes
# The others are those of train.sh, in settings.sh.
#
# Under the same path on every node: this folder with its .venv, MODEL, DATA and OUT. OUT must be on a disk that all of them
# share: each rank writes its part of a checkpoint, and reads it again when the run goes on.
#
# Networks: NCCL_SOCKET_IFNAME=ib0 (the interface), NCCL_IB_HCA, NCCL_IB_DISABLE=1 (no InfiniBand), NCCL_DEBUG=INFO (what is
# used). With ssh, DeepSpeed sends this shell's NCCL*, PYTHON*, UCX*, MV2* and MLFLOW* along, and this recipe what `sent`
# names and the lines of ~/.deepspeed_env and ./.deepspeed_env (NAME=value, no empty lines); other variables stay here.
# Without ssh nothing is sent: set them on every node.
#
# Ctrl-C or SIGTERM, without ssh on any one node: all nodes save after the step under way and end, with status 143. The same
# command goes on from the last complete checkpoint, also with other nodes (--accept_changes if a step then has other rows).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source pretrain/scripts/settings.sh

HOSTFILE=${HOSTFILE:-hostfile} MASTER_ADDR=${MASTER_ADDR:-} MASTER_PORT=${MASTER_PORT:-29500}
NODE_RANK=${NODE_RANK:-} SSH_PORT=${SSH_PORT:-}
[ -f "$HOSTFILE" ] || fail "HOSTFILE=$HOSTFILE does not exist; it has a line for each node: node1 slots=8"
hosts=()
while read -r host slots; do
    [ -n "$host" ] && [[ $host != \#* ]] || continue
    [[ $slots =~ ^slots=[1-9] ]] || fail "$HOSTFILE: '$host $slots' is not of the form: node1 slots=8"
    hosts+=("$host")
done < <(cat "$HOSTFILE" && echo)
# DeepSpeed would start the ranks of a single line here, whatever machine that names.
[ ${#hosts[@]} -gt 1 ] || fail "$HOSTFILE names fewer than two nodes; for one there is pretrain/scripts/train.sh"

where=(--hostfile "$HOSTFILE" --master_port "$MASTER_PORT")
[ -z "$MASTER_ADDR" ] || where+=(--master_addr "$MASTER_ADDR")
if [ -n "$NODE_RANK" ]; then
    [[ $NODE_RANK =~ ^[0-9]+$ ]] && [ "$NODE_RANK" -lt ${#hosts[@]} ] \
        || fail "NODE_RANK=$NODE_RANK is not from 0 to $((${#hosts[@]} - 1)), the lines of $HOSTFILE"
    [ -n "$MASTER_ADDR" ] || fail "MASTER_ADDR, an address of the first node of $HOSTFILE, must be set with NODE_RANK"
    where+=(--no_ssh --node_rank "$NODE_RANK")
else
    command -v pdsh > /dev/null \
        || fail "there is no pdsh here; install it, or run this on every node with NODE_RANK and MASTER_ADDR"
    on() { ssh -o BatchMode=yes ${SSH_PORT:+-p "$SSH_PORT"} "$@" < /dev/null; }
    for host in "${hosts[@]}"; do
        on "$host" true 2> /dev/null || fail "ssh to $host fails, or would ask something; try: ssh $host true"
    done
    [ -z "$SSH_PORT" ] || where+=(--ssh_port "$SSH_PORT")

    # DeepSpeed sends what one file says, besides its own choice. PATH is for ninja, with which it compiles.
    sent='PATH|LD_LIBRARY_PATH|CUDA_HOME|DS_ACCELERATOR|TORCH_[A-Z_]*|OMP_NUM_THREADS|GLOO_[A-Z_]*|TOKENIZERS_PARALLELISM'
    DS_ENV_FILE=$(mktemp)
    export DS_ENV_FILE
    trap 'rm -f "$DS_ENV_FILE"' EXIT
    { env | grep -E "^($sent)="; cat ~/.deepspeed_env .deepspeed_env 2> /dev/null || true; } > "$DS_ENV_FILE"

    # The first node's ranks will do, since all agree after each step. By itself each node would kill its own after 30 s.
    tell_ranks() {
        on "${hosts[0]}" "pkill -TERM -f '[-]u pretrain/train[.]py .*--output_dir $OUT '" || kill -TERM "$launcher" || true
    }
fi
launch deepspeed "${where[@]}" pretrain/train.py "${options[@]}" "$@"
