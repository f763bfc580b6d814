#!/bin/sh
# Tries the image as a pod would run it: read-only root, no capabilities, an arbitrary user. Usage: image/smoke.sh IMAGE
set -eu
docker=${DOCKER:-docker}
tmp=--tmpfs=/tmp:exec,mode=1777
restricted() { "$docker" run --rm --read-only --cap-drop=ALL --security-opt=no-new-privileges --network=none $tmp "$@"; }

echo "version, as an arbitrary user"
restricted --user=1000660000:0 "$1" --version

echo "phantoms and a cache on a volume, as the image's default user"
work=$("$docker" volume create)
trap '"$docker" volume rm "$work" >/dev/null' EXIT
restricted --volume="$work:/work" "$1" phantoms /work/data --num-images 40 --seed 7
restricted --volume="$work:/work" "$1" cache build --labels /work/data/labels.csv --images /work/data/images --image-size 64

echo "torch.compile: the C compiler and Python's headers exist, and its caches are writable"
restricted --entrypoint=python "$1" -c '
import torch
model = torch.compile(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()))
assert model(torch.ones(2, 8)).shape == (2, 8)
print("compiled with torch", torch.__version__)'

echo "the dashboard matches this Optuna's tables"
restricted --entrypoint=python "$1" -c '
from wsgiref.util import setup_testing_defaults
import optuna
from optuna_dashboard._app import create_app
storage = optuna.storages.RDBStorage("sqlite:////tmp/studies.db")
optuna.create_study(storage=storage).optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
answer, request = [], {"PATH_INFO": "/api/studies"}
setup_testing_defaults(request)
list(create_app(storage)(request, lambda status, headers, error=None: answer.append(status)))
assert answer == ["200 OK"], answer'

echo "SIGTERM stops a container at once, also while Python starts"
container=$("$docker" run --detach --volume="$work:/work" "$1" phantoms /work/more --num-images 5000 --seed 7)
"$docker" stop --time=20 "$container" >/dev/null
code=$("$docker" inspect --format='{{.State.ExitCode}}' "$container")
"$docker" rm "$container" >/dev/null
test "$code" = 143 || { echo "exit $code instead of 143" >&2; exit 1; }
