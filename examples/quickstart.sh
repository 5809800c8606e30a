#!/usr/bin/env bash
# The whole pipeline on two cores without a GPU: raw text -> corpus -> ZeRO-3 pretraining on two ranks -> weight diff and
# recovery -> LoRA -> merge -> held-out F1 -> vLLM -> curl. Steps print their commands before they run.
#
#   bash examples/quickstart.sh                       about 14 minutes on two cores
#   DATA=texts.jsonl bash examples/quickstart.sh      with 150,000 characters of your own text ({"text": …} per line)
#   SHORT=1 OUT=short bash examples/quickstart.sh     every step in its shortest form; the scores then mean nothing
#
# After an interruption, run the same command again: steps whose result exists are skipped.
# OUT    folder of the results (quickstart)
# PORT   port of the server (8090)
# SEED   seed of the data, the initial weights and both training runs (0)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source examples/recipe_steps.sh

OUT=${OUT:-quickstart} PORT=${PORT:-8090} SEED=${SEED:-0} SHORT=${SHORT:-} DATA=${DATA:-}
# Sizes of the data and the model, and lengths of the runs. Most of the training time is needed until the model copies
# names that it has not seen. It learns this in less time if names are composed of few different parts, with a small RoPE
# base (texts are short), with a large head dimension, and with many steps of small batches. LoRA also adapts the output
# matrix (lm_head), since answers begin with JSON tokens that the pretraining text does not have at these positions.
people=2400 documents=40000 rows=16000 heldout=200 real_megabytes=0.15
vocabulary=1200 width=192 layers=3 heads=3 feed_forward=384
rope_theta=100
pretrain_batch=4 pretrain_block=256 pretrain_steps=2200 pretrain_rate=3e-3
tune_batch=32 tune_micro_batch=16 tune_epochs=2 tune_rate=3e-3 lora_rank=32
log_every=20
if [ -n "$SHORT" ]; then
    people=100 documents=150 rows=64 heldout=8
    layers=2 pretrain_steps=6 tune_epochs=1 log_every=1
fi

set_up
check_settings "seed $SEED, short ${SHORT:-0}, data ${DATA:--}, people $people, documents $documents, rows $rows, model $width x $layers"

headline "1/9  Data about a small made-up world, a tokenizer and a random base model"
step $OUT/world python examples/make_demo.py world --output_dir $OUT/world --people $people --seed "$SEED" \
    --documents_per_language $documents --rows $rows --heldout_rows $heldout --real_megabytes $real_megabytes \
    --data_path "$DATA" --template_path finetune/templates/alpaca.jinja
step $OUT/tokenizer/tokenizer.model python examples/make_demo.py tokenizer --output_dir $OUT/tokenizer \
    --input $OUT/world/en.jsonl,$OUT/world/zh.jsonl,$OUT/world/real.jsonl,$OUT/world/prompts.jsonl --vocab_size $vocabulary
step $OUT/tokenizer/tokenizer.json python tools/build_tokenizer.py --tokenizer_model $OUT/tokenizer/tokenizer.model \
    --output_dir $OUT/tokenizer
step $OUT/base python examples/make_demo.py model --tokenizer_path $OUT/tokenizer --output_dir $OUT/base \
    --hidden_size $width --num_hidden_layers $layers --num_attention_heads $heads \
    --intermediate_size $feed_forward --initializer_range 0.04 --rope_theta $rope_theta --seed "$SEED"
seal $OUT/base ""

headline "2/9  One memory-mapped corpus for each source; the corpora merged"
for source in en zh real; do
    step $OUT/corpus/$source.json python pretrain/preprocess.py --mode write --file_path $OUT/world/$source.jsonl \
        --save_prefix $OUT/corpus/$source --tokenizer_path $OUT/tokenizer --seq_length 256
done
step $OUT/corpus/all.json python pretrain/preprocess.py --mode merge --new_path_prefix $OUT/corpus/all \
    --merge_path_prefix "$OUT/corpus/en,$OUT/corpus/zh,$OUT/corpus/real" --merge_path_type 0,0,1

headline "3/9  Continued pretraining: ZeRO-3 on two ranks"
resume=()
if compgen -G "$OUT/pretrained/checkpoint-*/complete.json" > /dev/null; then resume=(--resume_from_checkpoint True); fi
master_port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') # a free port
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + 1) / 2))} step $OUT/pretrained/config.json \
    stop_ranks_on_interrupt deepspeed -q --num_gpus 2 --master_port "$master_port" pretrain/train.py \
    --deepspeed pretrain/configs/zero3.json --model_name_or_path $OUT/base --data_path $OUT/corpus/all \
    --output_dir $OUT/pretrained --per_device_train_batch_size $pretrain_batch --max_steps $pretrain_steps \
    --learning_rate $pretrain_rate --block_size $pretrain_block --weight_decay 0 --save_steps 0.5 \
    --save_total_limit 1 --logging_steps $log_every --report_to none --seed "$SEED" "${resume[@]}"
rm -rf "$OUT"/pretrained/checkpoint-* # only needed to resume
seal $OUT/pretrained $OUT/base

headline "4/9  Weight diff between base and trained model; the trained weights recovered from it"
step $OUT/diff python tools/weight_diff.py make_diff --path_raw $OUT/base --path_tuned $OUT/pretrained --path_diff $OUT/diff
step $OUT/recovered python tools/weight_diff.py recover --path_raw $OUT/base --path_diff $OUT/diff --path_tuned $OUT/recovered
seal $OUT/recovered $OUT/base
step $OUT/recovery.txt print_and_save $OUT/recovery.txt python tools/checkpoint.py compare $OUT/pretrained $OUT/recovered

headline "5/9  LoRA on the extraction instructions"
step $OUT/adapter/adapter_model.safetensors python finetune/finetune.py --base_model $OUT/recovered \
    --data_path $OUT/world/train.jsonl --output_dir $OUT/adapter --prompt_template_name alpaca \
    --extraction_path $OUT/world/extraction.json --lora_r $lora_rank --lora_alpha $((2 * lora_rank)) --lora_dropout 0 \
    --lora_target_modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,lm_head --batch_size $tune_batch \
    --micro_batch_size $tune_micro_batch --num_epochs $tune_epochs \
    --learning_rate $tune_rate --adam_beta2 0.95 --lr_scheduler_type cosine --cutoff_len 512 --save_strategy no \
    --logging_steps $log_every --report_to none --seed "$SEED"
seal $OUT/adapter $OUT/recovered

headline "6/9  The adapter merged into the model"
step $OUT/merged python tools/weight_diff.py merge --path_zhixi $OUT/recovered --path_lora $OUT/adapter --path_sfted $OUT/merged
seal $OUT/merged $OUT/recovered,$OUT/adapter

headline "7/9  Extraction on held-out rows before and after tuning; their names do not occur in training"
for model in recovered merged; do
    step $OUT/answers-$model.jsonl python finetune/ie_run.py --base_model $OUT/$model --data_path $OUT/world/heldout.jsonl \
        --prompt_template_name alpaca --output $OUT/answers-$model.jsonl --batch_size 100 --max_new_tokens 128
    step $OUT/scores-$model.json python finetune/ie_eval.py --predictions $OUT/answers-$model.jsonl --output $OUT/scores-$model.json
done

headline "8/9  Serve the model with vLLM, ask it with curl"
# serve_and_ask: serves the merged model, sends the first held-out relation row to /generate, and stops the server.
serve_and_ask() {
    python -c 'import json, sys
row = next(row for row in map(json.loads, open(sys.argv[1], encoding="utf-8")) if "relation" in row["instruction"])
body = {"instruction": row["instruction"], "input": row["input"], "parameters": {"top_p": 0.7, "max_tokens": 256}}
print(json.dumps(body, ensure_ascii=False))' "$OUT/world/heldout.jsonl" > "$OUT/question.json"
    start_server "$OUT/merged" "$OUT/server.log"
    ask "$OUT/question.json" "$OUT/answer.json"
    stop_server
}
step $OUT/answer.json serve_and_ask

headline "9/9  Summary"
python examples/make_demo.py summary --folder "$OUT"
cat << EOF

Try the model (first: source ${VENV:-.venv}/bin/activate):
  python examples/generate_lora_web.py --base_model $OUT/merged          the demo in a browser
  python examples/generate_lora.py --base_model $OUT/merged --interactive
  python inference/launch_vllm.py --model $OUT/merged --port $PORT          the server of step 8
EOF
