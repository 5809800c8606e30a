#!/usr/bin/env bash
# Continued pretraining on several machines with DeepSpeed's launcher; for Slurm use train.slurm. The published run for
# LLaMA-13B had 3 nodes of 8 V100, with this hostfile:
#
#   node1 slots=8
#   node2 slots=8
#   node3 slots=8
#
# With ssh, run it on one node. It needs pdsh, and ssh without a password prompt to every node, itself included:
#
#   MODEL=/shared/llama-13b DATA=/shared/corpus/all OUT=/shared/runs/zh HOSTFILE=hostfile PRECISION=fp16 \
#       BLOCK_SIZE=1024 MICRO_BATCH=20 ACCUMULATION=3 LEARNING_RATE=1.5e-5 bash pretrain/scripts/train_multinode.sh
#
# Without ssh, run the same command on every node within a few minutes, with its line number in the hostfile, from 0:
#
#   NODE_RANK=0 MASTER_ADDR=10.0.0.1 MODEL=… bash pretrain/scripts/train_multinode.sh      and NODE_RANK=1 on the next
#
# Global batch: 24 ranks x micro batch 20 x accumulation 3 = 1440 sequences of 1024 tokens, 1.5 million tokens. If a
# micro batch of 20 does not fit, MICRO_BATCH=3 ACCUMULATION=20 gives the same global batch. pretrain/plan.py finds a
# micro batch that fits.
#
# Settings, with defaults in parentheses:
# HOSTFILE     (hostfile) a line `name slots=GPUs` for each node, in the order of the ranks, without repeated names
# MASTER_ADDR  an address of the first node that all others can reach. Default with ssh: the first address that
#              `hostname -I` prints there; set it if this address belongs to a container bridge or a slow network
# MASTER_PORT  (29500) a free port on the first node, the same value on all nodes
# SSH_PORT     (default of ssh) ssh port of all nodes
# settings.sh has the other settings, as for train.sh.
#
# The repository with its .venv, MODEL, DATA and OUT need the same path on every node. OUT must be on a shared disk:
# each rank writes its part of a checkpoint and reads it when the run resumes.
#
# Networks: NCCL_SOCKET_IFNAME=ib0 (interface), NCCL_IB_HCA, NCCL_IB_DISABLE=1 (no InfiniBand), NCCL_DEBUG=INFO (log).
# With ssh, DeepSpeed exports NCCL*, PYTHON*, UCX*, MV2* and MLFLOW* to all nodes, and this script adds the variables in
# `exported` and the lines of ~/.deepspeed_env and ./.deepspeed_env (NAME=value, no empty lines). Other variables are
# not exported. Without ssh, no variable is exported; set all of them on every node.
#
# Ctrl-C or SIGTERM (without ssh, on any node): all nodes finish the step, save a checkpoint and exit with status 143.
# The same command resumes from the newest complete checkpoint, also on other nodes; if the global batch changes, it
# needs --accept_changes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source pretrain/scripts/settings.sh

HOSTFILE=${HOSTFILE:-hostfile} MASTER_ADDR=${MASTER_ADDR:-} MASTER_PORT=${MASTER_PORT:-29500}
NODE_RANK=${NODE_RANK:-} SSH_PORT=${SSH_PORT:-}
[ -f "$HOSTFILE" ] || fail "HOSTFILE=$HOSTFILE does not exist; write a line for each node: node1 slots=8"
hosts=()
while read -r host slots; do
    [ -n "$host" ] && [[ $host != \#* ]] || continue
    [[ $slots =~ ^slots=[1-9] ]] || fail "$HOSTFILE: '$host $slots' is not of the form: node1 slots=8"
    hosts+=("$host")
done < <(cat "$HOSTFILE" && echo)
# For a single line DeepSpeed would start the ranks on this machine, even if the line names another machine.
[ ${#hosts[@]} -gt 1 ] || fail "$HOSTFILE names fewer than two nodes; for one node use pretrain/scripts/train.sh"

where=(--hostfile "$HOSTFILE" --master_port "$MASTER_PORT")
[ -z "$MASTER_ADDR" ] || where+=(--master_addr "$MASTER_ADDR")
if [ -n "$NODE_RANK" ]; then
    [[ $NODE_RANK =~ ^[0-9]+$ ]] && [ "$NODE_RANK" -lt ${#hosts[@]} ] \
        || fail "NODE_RANK=$NODE_RANK is not from 0 to $((${#hosts[@]} - 1)), the lines of $HOSTFILE"
    [ -n "$MASTER_ADDR" ] || fail "MASTER_ADDR, an address of the first node of $HOSTFILE, must be set with NODE_RANK"
    where+=(--no_ssh --node_rank "$NODE_RANK")
else
    command -v pdsh > /dev/null \
        || fail "pdsh is not installed; install it, or run this on every node with NODE_RANK and MASTER_ADDR"
    on() { ssh -o BatchMode=yes ${SSH_PORT:+-p "$SSH_PORT"} "$@" < /dev/null; }
    for host in "${hosts[@]}"; do
        on "$host" true 2> /dev/null || fail "ssh to $host fails or prompts for input; try: ssh $host true"
    done
    [ -z "$SSH_PORT" ] || where+=(--ssh_port "$SSH_PORT")

    # DeepSpeed exports the variables in DS_ENV_FILE; it needs PATH to find ninja, its build tool.
    exported='PATH|LD_LIBRARY_PATH|CUDA_HOME|DS_ACCELERATOR|TORCH_[A-Z_]*|OMP_NUM_THREADS|GLOO_[A-Z_]*'
    exported+='|TOKENIZERS_PARALLELISM'
    DS_ENV_FILE=$(mktemp)
    export DS_ENV_FILE
    trap 'rm -f "$DS_ENV_FILE"' EXIT
    { env | grep -E "^($exported)="; cat ~/.deepspeed_env .deepspeed_env 2> /dev/null || true; } > "$DS_ENV_FILE"

    # Stopping the ranks of the first node stops all ranks, since they agree after each step whether to stop.
    # DeepSpeed's own handler would kill the ranks of each node after 30 s.
    stop_ranks() {
        on "${hosts[0]}" "pkill -TERM -f '[-]u pretrain/train[.]py .*--output_dir $OUT '" || kill -TERM "$launcher" || true
    }
fi
launch deepspeed "${where[@]}" pretrain/train.py "${options[@]}" "$@"
