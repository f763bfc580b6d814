{{/* A claim that survives `helm uninstall`. A change that the cluster forbids fails when the chart is rendered:
     (dict "root" $ "component" ... "value" <path in the values> "size" ... "class" ... "mode" ...) */}}
{{- define "csi-job.claim" -}}
{{- $name := printf "%s-%s" (include "csi-job.fullname" .root) .component -}}
{{- $old := lookup "v1" "PersistentVolumeClaim" .root.Release.Namespace $name | default dict -}}
{{- if $old }}
{{- include "csi-job.claimChange" (merge (dict "old" $old "name" $name) .) -}}
{{- end -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  {{- include "csi-job.metadata" (list .root .component .component) | nindent 2 }}
  annotations: {helm.sh/resource-policy: keep}
spec:
  accessModes: [{{ .mode }}]
  {{- with empty $old | ternary .class (include "csi-job.claimClass" $old) }}
  storageClassName: {{ . | quote }}
  {{- end }}
  resources: {requests: {storage: {{ .size }}}}
{{- end -}}

{{/* The class that an earlier revision gave an existing claim, which can't lose it. One that the cluster gave it is not
     mentioned, even if the values name it now: a rollback to a revision that did not would take it away. */}}
{{- define "csi-job.claimClass" -}}
{{- if contains "f:storageClassName" (dig "metadata" "managedFields" "" . | toJson) }}{{ .spec.storageClassName }}{{ end -}}
{{- end -}}

{{/* Fail and name the value if the existing claim can't become the wanted one: as above, with "name" and "old" <the claim>.
     Whether its class can grow is left to the API server: classes are cluster-scoped, and a lookup without the right to
     read them fails every upgrade. */}}
{{- define "csi-job.claimChange" -}}
{{- if dig "metadata" "deletionTimestamp" "" .old -}}
{{- fail (printf "the claim %s is being deleted, and its data with it; end the pods that still use it with helm uninstall, wait for: kubectl wait --for=delete pvc/%s, then install again" .name .name) -}}
{{- end -}}
{{- $spec := .old.spec -}}
{{- $class := $spec.storageClassName | default "" -}}
{{- if and .class (ne .class $class) -}}
{{- fail (printf "%s.storageClass can't be changed from %q to %q: the claim %s already exists; keep the value, or delete the claim and its data" .value $class .class .name) -}}
{{- end -}}
{{- if not (has .mode $spec.accessModes) -}}
{{- fail (printf "%s.accessMode can't be changed to %s: the claim %s already exists as %s; keep the value, or delete the claim and its data" .value .mode .name (join ", " $spec.accessModes)) -}}
{{- end -}}
{{- $size := $spec.resources.requests.storage -}}
{{- $change := printf "%s.size can't be changed from %s to %v" .value $size .size -}}
{{- $wanted := include "csi-job.bytes" .size | float64 -}}
{{- $present := include "csi-job.bytes" $size | float64 -}}
{{- if lt $wanted $present -}}
{{- fail (printf "%s: no claim can shrink, and %s already exists; keep the value" $change .name) -}}
{{- end -}}
{{- end -}}

{{/* Convert a quantity such as 50Gi to bytes. */}}
{{- define "csi-job.bytes" -}}
{{- $factors := dict "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 -}}
{{- $unit := regexFind "[A-Za-z]*$" (toString .) -}}
{{- printf "%.0f" (mulf (trimSuffix $unit (toString .)) (get $factors $unit | default 1.0)) -}}
{{- end -}}
