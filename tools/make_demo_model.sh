#!/bin/sh
# Train the small model that ships, from random weights, and write its card: `make demo-model`.
#
# Where S3DIFF_PAIRS names a folder with LR and HR (real pairs of equal names), the card has their scores too.
set -eu

photographs=photographs/train
held_out=photographs/held-out
runs=runs/demo
model=training/s3diff_training/demo_model

# What both stages of the LoRA share; a stage adds its weights, its rate and what turns the LoRA.
train_lora() {
    s3diff-export train lora "$photographs" --base "$runs/base/base" --estimator "$runs/estimator/de_net.pth" \
        --validation "$held_out" --accumulate 1 \
        --lr-final 1e-5 --schedule cosine --warmup-fraction 0.02 --ema-decay 0.998 \
        --lambda-gan 0 --lpips-net alex --loss-color wavelet "$@"
}

python tools/fetch_photographs.py photographs

s3diff-export train base "$photographs" -o "$runs/base" --validation "$held_out" --validation-crop 256 \
    --steps 4500 --lambda-lpips 0.15
s3diff-export train estimator "$photographs" -o "$runs/estimator" --validation "$held_out"

# First the true levels, which teach what a score means, on small crops; then the estimator's, which it will see,
# on crops of twice the side, because what attention learns on few tokens does not fit many.
train_lora -o "$runs/lora-first" --degradation true --steps 2200 --lr 5e-4 --lambda-l2 4 --lambda-lpips 0.2 \
    --crop 128 --batch 4 --validation-crop 256
train_lora -o "$runs/lora" --checkpoint "$runs/lora-first/checkpoint.safetensors" --degradation estimated \
    --steps 2600 --lr 3e-4 --lambda-l2 8 --lambda-lpips 0.2 --crop 256 --batch 1 --validation-crop 512 --seed 2

python tools/package_demo_model.py "$runs" "$model" --photographs "$held_out"

set -- # the options for real pairs, or none
if [ -n "${S3DIFF_PAIRS:-}" ]; then
    set -- --lr "$S3DIFF_PAIRS/LR" --hr "$S3DIFF_PAIRS/HR"
fi
mkdir -p docs/images
s3diff-export bench quality --demo --held-out "$held_out" "$@" \
    -o "$runs/quality" --force --card "$runs/quality.md" --picture docs/images/demo.png

python tools/package_demo_model.py "$runs" "$model" --photographs "$held_out" \
    --figures "$runs/quality.md" --sources "$photographs/SOURCES.md"
