{{/* Address blocks of a rule: one, or a list. */}}
{{- define "csi-job.blocks" -}}
{{- range kindIs "string" . | ternary (list .) . }}
- {ipBlock: {cidr: {{ . | quote }}}}
{{- end }}
{{- end -}}
