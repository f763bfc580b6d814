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
mkdir -p "$folder"
for file in "$work"/csi-job/templates/*.yaml; do
  sed 's|managed-by: Helm|managed-by: kustomize|' "$file" >"$folder/$(basename "$file")"
done
{
  printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: csi-job\nresources:\n'
  for file in "$work"/csi-job/templates/*.yaml; do printf '  - %s\n' "$(basename "$file")"; done
} >"$folder/kustomization.yaml"
