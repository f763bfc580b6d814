{{/* What every pod has in common: (list $ <the component's values>). */}}
{{- define "csi-job.podSpec" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with (index . 0).Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with index . 1 | include "csi-job.placement" }}
{{ . }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of a pod: (list $ component). */}}
{{- define "csi-job.podMetadata" -}}
labels: {{- include "csi-job.labels" . | nindent 2 }}
{{- with (index . 0).Values.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where a pod may run and at what priority: (the component's values). */}}
{{- define "csi-job.placement" -}}
{{- $placement := dict -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" -}}
{{- with index $ $key -}}{{- $_ := set $placement $key . -}}{{- end -}}
{{- end -}}
{{- with $placement -}}{{ toYaml . }}{{- end -}}
{{- end -}}

{{/* Image and security of a container: (list $ image). */}}
{{- define "csi-job.containerImage" -}}
image: {{ include "csi-job.image" . }}
imagePullPolicy: {{ include "csi-job.pullPolicy" (index . 0) }}
securityContext: {{- toYaml (index . 0).Values.securityContext | nindent 2 }}
{{- end -}}

{{/* How a Job of csi-job judges the end of its pods. A pod that is drained, preempted, scaled down or deleted (143, after
     SIGTERM) hands its work over and counts as no failure. A configuration error (2) or a failed study (3) fails the Job
     at once. Any other error is retried. */}}
{{- define "csi-job.podFailurePolicy" -}}
rules:
  - {action: Ignore, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
  - {action: Ignore, onExitCodes: {operator: In, values: [143]}}
  - {action: FailJob, onExitCodes: {operator: In, values: [2, 3]}}
{{- end -}}

{{- define "csi-job.databaseVolume" -}}
{{ include "csi-job.secretVolume" (list "database" (include "csi-job.databaseSecret" .) .Values.database.secretKey "password") }}
{{- end -}}

{{/* One key of a Secret as a file: (list <volume> <secret> <key> <file>). Optional, so that csi-job reports a missing
     Secret or key in one line; otherwise the pod would wait for it forever. */}}
{{- define "csi-job.secretVolume" -}}
- name: {{ index . 0 }}
  secret:
    secretName: {{ index . 1 | quote }}
    items: [{key: {{ index . 2 | quote }}, path: {{ index . 3 }}}]
    optional: true
    defaultMode: 0440
{{- end -}}
