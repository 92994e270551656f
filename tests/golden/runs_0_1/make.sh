#!/usr/bin/env bash
# Writes the run folders again, with the code of commit 1ba5ef2: make.sh CHECKOUT. They go to ./runs.
set -euo pipefail
base=$1
here=$PWD
export PYTHONPATH=$base HYBRIDMERGE_PRECISION=fp32 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
PYTHON=${PYTHON:-python}
train() { (cd "$base" && nice "$PYTHON" tools/train.py "$@" "out=$here/runs" device=cpu threads=1 log.images=0); }

tiny="model.embed_dim=8 model.depth=2 model.num_heads=2 model.cnn.depth=1 merge.r=3"
hybrid="--cfg digits/hybrid $tiny train.epochs=6 train.batch_size=64 train.lr=1e-2 split.val=0.1"

train $hybrid name=hybrid
train $hybrid name=stopped checkpoint.every_steps=7 & job=$!
until [ -s runs/stopped/best.pt ] && [ -s runs/stopped/last.pt ]; do sleep 0.02; done
kill -9 "$(grep -o '[0-9]*' runs/stopped/.lock | head -1)"  # the lock names the process
wait "$job" || true
train --cfg digits/hybrid $tiny train.epochs=2 train.batch_size=64 train.lr=3e-3 split.val=0.1 split.folds=2 name=folds
train --cfg digits/hybrid $tiny "model.weights=$here/runs/hybrid" finetune.mode=lora finetune.rank=2 train.epochs=1 train.batch_size=64 train.lr=1e-3 split.val=0.1 augment.mixup=0 augment.cutmix=0 name=lora
"$PYTHON" draw.py images
train --cfg digits/vit model.img_size=16 model.in_chans=3 model.patch_size=4 model.num_classes=2 model.embed_dim=8 model.depth=2 model.num_heads=2 merge.r=3 data.name=csv "data.path=$here/images/table.csv" data.labels=many train.epochs=6 train.batch_size=8 train.lr=3e-3 train.label_smoothing=0 split.val=0.25 split.test=0.25 augment.crop=0 augment.mixup=0 augment.cutmix=0 name=labels
