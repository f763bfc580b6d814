{{/* A claim that is kept over uninstall, and refused at render where the change is forbidden:
     (dict "root" $ "component" ... "name" ... "value" <values path> "size" ... "class" ... "mode" ...) */}}
{{- define "csi-job.claim" -}}
{{- $old := lookup "v1" "PersistentVolumeClaim" .root.Release.Namespace .name -}}
{{- if $old }}
{{- $known := lookup "storage.k8s.io/v1" "StorageClass" "" ($old.spec.storageClassName | default "") -}}
{{- include "csi-job.claimChange" (merge (dict "old" $old "known" $known) .) -}}
{{- end -}}
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

{{/* Fails with the value's name where the claim that is there can't become the wanted one:
     as above, with "old" <the claim> and "known" <its storage class, where it may be looked at>. */}}
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
{{- $change := printf "%s.size can't be changed from %s to %s" .value $size .size -}}
{{- $wanted := include "csi-job.bytes" .size | float64 -}}
{{- $present := include "csi-job.bytes" $size | float64 -}}
{{- if lt $wanted $present -}}
{{- fail (printf "%s: no claim can shrink, and %s is there already; keep the value" $change .name) -}}
{{- end -}}
{{- if and (gt $wanted $present) .known (not .known.allowVolumeExpansion) -}}
{{- fail (printf "%s: the storage class %q of the claim %s can't grow; keep the value" $change $class .name) -}}
{{- end -}}
{{- end -}}

{{/* Bytes of a quantity such as 50Gi. */}}
{{- define "csi-job.bytes" -}}
{{- $factors := dict "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 -}}
{{- $unit := regexFind "[A-Za-z]*$" (toString .) -}}
{{- printf "%.0f" (mulf (trimSuffix $unit (toString .)) (get $factors $unit | default 1.0)) -}}
{{- end -}}
