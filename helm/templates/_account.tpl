{{/* Names of the service accounts: of the controller, and of all other pods. */}}
{{- define "csi-job.controllerAccount" -}}
{{ (.Values.controller.serviceAccount).name | default (printf "%s-controller" (include "csi-job.fullname" .)) }}
{{- end -}}

{{- define "csi-job.account" -}}
{{ .Values.serviceAccount.name | default (include "csi-job.fullname" .) }}
{{- end -}}

{{/* A service account, unless someone else creates it: (list $ <component> <its values> <name>). */}}
{{- define "csi-job.serviceAccount" -}}
{{- $values := index . 2 | default dict -}}
{{- if dig "create" true $values -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ index . 3 | quote }}
  namespace: {{ (index . 0).Release.Namespace | quote }}
  labels: {{- include "csi-job.labels" (slice . 0 2) | nindent 4 }}
  {{- with $values.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}
{{- end -}}
