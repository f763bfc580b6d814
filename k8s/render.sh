#!/bin/sh
# Renders the chart into plain manifests. Usage: k8s/render.sh FOLDER [HELM-OPTION...]
set -eu
folder=$1
shift
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
helm template csi-job "$here/../helm" --namespace csi-job --skip-tests --values "$here/values.yaml" "$@" \
  --output-dir "$work" >/dev/null
manifests=$(cd "$work/csi-job/templates" && find . -name '*.yaml' | sed 's|^\./||' | sort)
{
  printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: csi-job\nresources:\n'
  for file in $manifests; do printf '  - %s\n' "$file"; done
} >"$work/kustomization.yaml"
for file in $manifests; do
  mkdir -p "$folder/$(dirname "$file")"
  sed 's|managed-by: Helm|managed-by: kustomize|' "$work/csi-job/templates/$file" >"$folder/$file"
done
cp "$work/kustomization.yaml" "$folder"
