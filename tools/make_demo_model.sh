#!/bin/sh
# Train the small model that ships, from random weights, and write its card: `make demo-model`.
#
# It trains for S3DIFF_MINUTES in all, by default 100, which two CPU cores with bfloat16 need; others, three times
# that. With a GPU that many cores feed, ten minutes do more:
#   S3DIFF_MINUTES=10 S3DIFF_BATCH=64 S3DIFF_WORKERS=14 S3DIFF_PRECISION=bf16 S3DIFF_PROCESSES=1 make demo-model
# S3DIFF_FROM names the runs of a former training (another copy of runs/demo) to go on from, at half the learning rate.
# S3DIFF_MODEL and S3DIFF_PICTURE are where the model and the sheet go that README shows. Where S3DIFF_PAIRS names a
# folder with LR and HR (real pairs of equal names), the card has their scores too; S3DIFF_MACHINE is what it says
# that the model was trained on.
set -eu

minutes=${S3DIFF_MINUTES:-100}
precision=${S3DIFF_PRECISION:-$(grep -q amx_bf16 /proc/cpuinfo && echo bf16 || echo no)}
# Each with one thread: two of them train nearly twice as fast as one with two threads.
processes=${S3DIFF_PROCESSES:-2}
batch=${S3DIFF_BATCH:-8}
model=${S3DIFF_MODEL:-training/s3diff_training/demo_model}
photographs=photographs/train
held_out=photographs/held-out
runs=runs/demo

# What all stages share: most of the photographs' crops are halved, and the most detailed of three is taken; an
# average of the weights is the result.
train() {
    stage=$1 name=$2 share=$3 batch_in_all=$4
    shift 4
    set -- s3diff-export train "$stage" "$photographs" -o "$runs/$name" --validation "$held_out" \
        --batch "$(((batch_in_all + processes - 1) / processes))" \
        --minutes "$(awk "BEGIN { print $minutes * $share }")" --workers "${S3DIFF_WORKERS:-0}" \
        --halved-fraction 0.75 --candidates 3 --accumulate 1 \
        --mixed-precision "$precision" --channels-last \
        --schedule cosine --warmup-fraction 0.02 --lr-final 1e-5 --ema-decay 0.998 "$@"
    if [ "$processes" -gt 1 ]; then
        set -- env ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 \
            torchrun --standalone --nproc-per-node "$processes" --no-python "$@"
    fi
    "$@"
}

# What both stages of the LoRA share, on crops of twice the side, because what attention learns on few tokens
# does not fit many.
train_lora() {
    name=$1 degradation=$2 share=$3
    shift 3
    train lora "$name" "$share" "$(((batch + 3) / 4))" --crop 256 --validation-crop 512 \
        --base "$runs/base/base" --estimator "$runs/estimator/de_net.pth" --degradation "$degradation" \
        --drawn-fraction 0.1 --lambda-flat 1 --lambda-gan 0 --lambda-l2 5 --lambda-lpips 0.5 \
        --lpips-net alex --loss-color wavelet "$@"
}

train_base() {
    train base base 0.5 "$batch" --drawn-fraction 0.1 --validation-crop 256 "$@"
}

# Every crop counts here, most of them as they come: those that are out of focus are what it has to recognise. Their
# tones change, or it knows noise only on the photographs that it has seen.
train_estimator() {
    train estimator estimator 0.15 "$((2 * batch))" --candidates 1 --halved-fraction 0.25 --toned-fraction 0.5 \
        --crop 192 "$@"
}

python tools/fetch_photographs.py photographs

if [ -n "${S3DIFF_FROM:-}" ]; then
    train_base --lr 3e-4 --base "$S3DIFF_FROM/base/base" --early-fraction 0.2
    train_estimator --lr 2.5e-4 --estimator "$S3DIFF_FROM/estimator/de_net.pth"
else
    train_base --lr 6e-4
    train_estimator --lr 5e-4
fi

# First the true levels, which teach what a score means, then the estimator's, which the LoRA will see.
train_lora lora-first true 0.15 --lr 5e-4
train_lora lora estimated 0.2 --lr 3e-4 --seed 2 --checkpoint "$runs/lora-first/checkpoint.safetensors"

python tools/package_demo_model.py "$runs" "$model" --photographs "$held_out"

set -- # the options for real pairs, or none
if [ -n "${S3DIFF_PAIRS:-}" ]; then
    set -- --lr "$S3DIFF_PAIRS/LR" --hr "$S3DIFF_PAIRS/HR"
fi
mkdir -p docs/images
s3diff-export bench quality --base "$model/base" --checkpoint "$model/checkpoint.safetensors" \
    --held-out "$held_out" "$@" \
    -o "$runs/quality" --force --card "$runs/quality.md" --picture "${S3DIFF_PICTURE:-docs/images/demo.png}"

python tools/package_demo_model.py "$runs" "$model" --photographs "$held_out" \
    --machine "${S3DIFF_MACHINE:-two CPU cores}" \
    --figures "$runs/quality.md" --sources "$photographs/SOURCES.md"
