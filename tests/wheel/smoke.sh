#!/bin/sh
# Install a wheel with its dependencies into a fresh environment, and use it away from the checkout.
# Usage: smoke.sh WHEEL UV PYTHON
set -eu
wheel=$(realpath "$1") uv=$(realpath -s "$2") python=$(realpath -s "$3")
root=$(dirname "$(realpath "$0")")
lock=$root/../../image/requirements.lock
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH

"$uv" venv --quiet --python "$python" "$folder/venv"
"$uv" pip install --quiet --python "$folder/venv/bin/python" --constraints "$lock" "$wheel"
"$uv" pip check --quiet --python "$folder/venv/bin/python"
cp "$root/use.py" "$folder"
cd "$folder"
venv/bin/csi-job --help | grep -q 'csi-job hyperopt'
venv/bin/csi-job --version
venv/bin/csi-job phantoms films --num-images 12
venv/bin/python use.py
venv/bin/csi-job predict films/images --model-path model.safetensors --work work --output scores.csv
test "$(wc -l <scores.csv)" -eq 13
echo "the wheel works on its own"
