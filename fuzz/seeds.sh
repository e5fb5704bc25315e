#!/bin/sh
# Fills fuzz/corpus with the repository's own small checkpoints: inputs that the readers accept, to start from.
set -eu
cd "$(dirname "$0")/.."
for target in archive torch_file metadata zarr safetensors gguf model_config; do mkdir -p "fuzz/corpus/$target"; done
cp tests/fixtures/container/*.nemo tests/fixtures/formats/*.nemo fuzz/corpus/archive/
cp tests/fixtures/torch_pickle/*.pt tests/fixtures/torch_pickle/*.ckpt fuzz/corpus/torch_file/
cp tests/fixtures/families/gemma/*.safetensors tests/fixtures/formats/*.safetensors fuzz/corpus/safetensors/
cp crates/nemo-format/tests/golden/*.gguf fuzz/corpus/gguf/
for config in tests/fixtures/*/model_config.yaml; do
    cp "$config" "fuzz/corpus/model_config/$(basename "$(dirname "$config")").yaml"
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for archive in tests/fixtures/formats/*.nemo tests/fixtures/mcore_*/*.nemo; do
    name=$(basename "$archive" .nemo)
    mkdir -p "$work/$name"
    tar -xf "$archive" -C "$work/$name"
    find "$work/$name" -name .metadata -exec cp {} "fuzz/corpus/metadata/$name" \;
    find "$work/$name" -name .zarray | while read -r array; do
        cp "$array" "fuzz/corpus/zarr/$name-$(basename "$(dirname "$array")")"
    done
    find "$work/$name" -name 'model_weights.ckpt' | while read -r file; do
        cp "$file" "fuzz/corpus/torch_file/$name-$(basename "$(dirname "$file")").ckpt"
    done
done
