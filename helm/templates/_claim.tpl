{{/* A claim that is kept over uninstall, and refused at render where the change is forbidden:
     (dict "root" $ "component" ... "name" ... "value" <values path> "size" ... "class" ... "mode" ...) */}}
{{- define "csi-job.claim" -}}
{{- $old := lookup "v1" "PersistentVolumeClaim" .root.Release.Namespace .name -}}
{{- if $old }}{{ include "csi-job.claimChange" (merge (dict "old" $old) .) }}{{ end -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  {{- include "csi-job.metadata" (list .root .component .name) | nindent 2 }}
  annotations: {helm.sh/resource-policy: keep}
spec:
  accessModes: [{{ .mode }}]
  {{- with .class }}
  storageClassName: {{ . }}
  {{- end }}
  resources: {requests: {storage: {{ .size }}}}
{{- end -}}

{{/* Fails with the value's name where the claim that is there can't become the wanted one. */}}
{{- define "csi-job.claimChange" -}}
{{- $spec := .old.spec -}}
{{- $class := $spec.storageClassName | default "" -}}
{{- if and .class (ne .class $class) -}}
{{- fail (printf "%s.storageClass can't be changed from %q to %q: the claim %s is there already; keep the value, or delete the claim with all that is on it" .value $class .class .name) -}}
{{- end -}}
{{- if not (has .mode $spec.accessModes) -}}
{{- fail (printf "%s.accessMode can't be changed to %s: the claim %s is there already as %s; keep the value, or delete the claim with all that is on it" .value .mode .name (join ", " $spec.accessModes)) -}}
{{- end -}}
{{- $size := $spec.resources.requests.storage -}}
{{- $known := lookup "storage.k8s.io/v1" "StorageClass" "" $class -}}
{{- if and (ne .size $size) $known (not $known.allowVolumeExpansion) -}}
{{- fail (printf "%s.size can't be changed from %s to %s: the storage class %q of the claim %s can't grow; keep the value" .value $size .size $class .name) -}}
{{- end -}}
{{- end -}}
