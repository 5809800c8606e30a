#!/usr/bin/env bash
# Serves a checkpoint folder with vLLM. Settings are environment variables with the defaults below.
#
#   MODEL=checkpoints/merged bash inference/scripts/serve.sh
#   MODEL=zjunlp/knowlm-13b-zhixi DTYPE=half TENSOR_PARALLEL=2 bash inference/scripts/serve.sh      # two GPUs
#   MODEL=checkpoints/base ADAPTERS="ie=runs/adapter zh=runs/other" bash inference/scripts/serve.sh
#
# Arguments are passed to inference/launch_vllm.py, which also accepts vLLM's options: … serve.sh --max-model-len 2048
# Then, in another terminal:
#
#   curl -s http://127.0.0.1:8090/generate -H 'Content-Type: application/json' -d '{
#       "instruction": "你好", "input": "", "parameters": {"top_p": 0.7, "max_tokens": 256}}'
#
# HOST=0.0.0.0 serves other machines, too; VLLM_API_KEY=KEY requires a key (Authorization: Bearer KEY).
# Ctrl-C or SIGTERM ends the server after its running requests; a second signal ends it at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

[ -n "${MODEL:-}" ] || { echo "error: MODEL is not set; name a checkpoint folder: MODEL=folder bash $0" >&2; exit 2; }
HOST=${HOST:-127.0.0.1}
PORT=${PORT:-8090}
DTYPE=${DTYPE:-}                                # half, bfloat16, float32; empty: the checkpoint's
TENSOR_PARALLEL=${TENSOR_PARALLEL:-1}           # GPUs that share each layer (processes, without a GPU)
MAX_NUM_BATCHED_TOKENS=${MAX_NUM_BATCHED_TOKENS:-}   # tokens per step of the engine; empty: vLLM's default
TEMPLATE_PATH=${TEMPLATE_PATH:-}                # Jinja or alpaca JSON; empty: the checkpoint's chat_template.jinja
ADAPTERS=${ADAPTERS:-}                          # NAME=FOLDER …: adapters of MODEL; requests select one by "model"

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
read -ra adapters <<<"$ADAPTERS"
for folder in "$MODEL" "${adapters[@]#*=}"; do
    [ ! -f "$folder/checkpoint.json" ] || "$python" tools/checkpoint.py verify "$folder" # only sealed folders
done
extra=()
[ -z "$DTYPE" ] || extra+=(--dtype "$DTYPE")
[ -z "$MAX_NUM_BATCHED_TOKENS" ] || extra+=(--max-num-batched-tokens "$MAX_NUM_BATCHED_TOKENS")
[ -z "$TEMPLATE_PATH" ] || extra+=(--template_path "$TEMPLATE_PATH")
[ -z "$ADAPTERS" ] || extra+=(--lora-modules "${adapters[@]}")

exec "$python" inference/launch_vllm.py --model "$MODEL" --host "$HOST" --port "$PORT" \
    --tensor-parallel-size "$TENSOR_PARALLEL" "${extra[@]}" "$@"
