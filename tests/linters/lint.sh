#!/bin/sh
# Lints Dockerfile, chart and plain manifests by every rule, without exceptions. Usage: tests/linters/lint.sh FOLDER-OF-TOOLS
set -eu
tools=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"

"$tools/hadolint" Dockerfile && echo "hadolint: Dockerfile is clean"
helm lint --quiet --strict --set demo.enabled=true helm
"$tools/python" tests/linters/render.py "$work"
LOG_LEVEL=ERROR "$tools/checkov" --compact --quiet --skip-download --framework dockerfile --file Dockerfile
LOG_LEVEL=ERROR "$tools/checkov" --compact --quiet --skip-download --framework kubernetes --directory "$work"
for file in "$work"/*.yaml; do
  # kube-score warns that the dashboard has a single replica, which is enough.
  strict=--exit-one-on-warning
  case $file in */dashboard.yaml) strict= ;; esac
  "$tools/kube-score" score --kubernetes-version v1.31 $strict --output-format ci "$file" >"$work/output" \
    || { grep -v '^\[OK\]\|^\[SKIPPED\]' "$work/output" >&2; exit 1; }
  echo "kube-score: $(basename "$file" .yaml): $(grep -c '^\[OK\]' "$work/output") checks passed"
done
