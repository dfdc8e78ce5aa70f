#!/usr/bin/env bash
# What one large GPU tells in nine minutes: how fast steps are, and the studies gpu-streets and gpu-imagenette.
#
#     benchmarks/gpu.sh OUT [IMAGENETTE]
#
# OUT gets a log and the tables, each small enough to commit; runs stay in a temporary folder. IMAGENETTE: tar shards, a
# class folder, or a .tar.xz of one of these (without it that study is left out). To take shards along in less than
# 60 MiB: `tools/shrink_shards.py imagenette128 small && tar -C small -cJf imagenette.tar.xz .`. Minutes of
# training a run: STREETS (0.5) and PHOTOS (1). A study whose time is up ends with what it has: the limits below add up
# to nine minutes. TINY=1 tries everything on any machine with tiny networks; its figures mean nothing.
set -uo pipefail
out=$1 photographs=${2:-}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH=$root/src:${PYTHONPATH:-} PYTHONUNBUFFERED=1
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
mkdir -p "$out" && exec > >(tee "$out/gpu.log") 2>&1
streets=${STREETS:-0.5} photos=${PHOTOS:-1} replaced=nothing small=() few=()
sizes=(model.size=small predictor.width=192 predictor.depth=4 train.batch_size=256)
if [ -n "${TINY:-}" ]; then
  streets=0.05 photos=0.05 few=(data.scenes_train=64 data.scenes_val=32)
  sizes=(model.width=32 model.depth=2 model.heads=2 predictor.width=16 predictor.depth=1 train.batch_size=16)
  small=("${sizes[@]}" data.workers=0 train.precision=fp32 evaluation.precision=fp32 evaluation.train_images=64
    evaluation.val_images=32)
  replaced='data\.(workers|scenes_train|scenes_val)=|evaluation\.precision='
fi

begin=$SECONDS
said() { echo "== $* ($((SECONDS - begin)) s)"; }

study() { # name, minutes a run, seconds at most, settings
  local name=$1 minutes=$2 limit=$3
  shift 3
  sed "s/^minutes:.*/minutes: $minutes/" "$root/src/depthjepa/studies/$name.yaml" | grep -vE "$replaced" > "$work/$name.yaml"
  said "$name: $minutes minutes a run"
  timeout --signal=TERM --kill-after=20 "$limit" "$python" -m depthjepa study "$work/$name.yaml" --out "$work/$name" "$@" ||
    said "$name was not finished (status $?)"
  for each in study.json study.md; do
    [ -f "$work/$name/$each" ] && mkdir -p "$out/$name" && cp "$work/$name/$each" "$out/$name/"
  done
}

said "machine"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv 2> /dev/null || echo "no NVIDIA GPU"
"$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
said "bench"
timeout 45 "$python" -m depthjepa bench data.root=scenes data.image_size=96 data.scenes_train=256 model.patch_size=8 \
  predictor.blocks=together guidance.kind=feature guidance.read=dense "${sizes[@]}" --json "$out/bench.json" ||
  said "bench failed"
study gpu-streets "$streets" 350 "${small[@]}" "${few[@]}"
if [ "${photographs%.tar.xz}" != "$photographs" ]; then
  mkdir "$work/photographs" && tar -C "$work/photographs" -xJf "$photographs" && photographs=$work/photographs
fi
if [ -n "$photographs" ]; then
  study gpu-imagenette "$photos" 140 "data.root=$photographs" "${small[@]}"
fi
said "done"
