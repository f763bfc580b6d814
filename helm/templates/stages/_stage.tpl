{{/* What the stages' Jobs have in common, each part as (list $ <stage>); limits also take the names of its containers. */}}
{{- define "csi-job.stageMetadata" -}}
{{- $queue := include "csi-job.queue" . -}}
{{ include "csi-job.metadata" (list (index . 0) (index . 1) (index . 1) (empty $queue | ternary dict (dict "kueue.x-k8s.io/queue-name" $queue))) }}
{{- with include "csi-job.annotations" (list (index . 0) (index . 1) dict dict) }}
{{ . }}
{{- end }}
{{- end -}}

{{- define "csi-job.stageLimits" -}}
{{- $root := index . 0 -}}
podFailurePolicy: {{- include "csi-job.podFailurePolicy" (slice . 2) | nindent 2 }}
{{- with (index $root.Values (index . 1)).deadlineSeconds }}
activeDeadlineSeconds: {{ . | int64 }}
{{- end }}
{{- with $root.Values.ttlSecondsAfterFinished }}
ttlSecondsAfterFinished: {{ . | int64 }}
{{- end }}
{{- end -}}

{{/* With the settings, which a pod reads from its own annotation: so every pod of a Job has those that the Job was created
     for, also after an upgrade that is rejected or has yet to replace it. Changed settings replace the Job. */}}
{{- define "csi-job.stagePodMetadata" -}}
{{ include "csi-job.podMetadata" (list (index . 0) (index . 1) (dict "csi-job/settings" (include "csi-job.settings" (index . 0)))) }}
{{- end -}}

{{/* A stage's pod without its containers; the cache's has its own init containers. */}}
{{- define "csi-job.stagePodSpec" -}}
{{- $root := index . 0 -}}
{{- $stage := index . 1 -}}
{{ include "csi-job.podSpec" . }}
restartPolicy: Never
{{- if ne $stage "cache" }}
{{- with include "csi-job.initContainers" . }}
initContainers: {{- trim . | nindent 2 }}
{{- end }}
{{- end }}
serviceAccountName: {{ include "csi-job.account" $root | quote }}
terminationGracePeriodSeconds: {{ $root.Values.terminationGracePeriodSeconds | int64 }}
securityContext: {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
volumes:
  - {name: work, persistentVolumeClaim: {claimName: {{ include "csi-job.workClaim" $root | quote }}}}
  - name: settings
    downwardAPI: {items: [{path: settings.yaml, fieldRef: {fieldPath: "metadata.annotations['csi-job/settings']"}}]}
  {{- include "csi-job.databaseVolumes" $root | nindent 2 }}
  {{- with $root.Values.wandb.existingSecret }}
  {{- include "csi-job.secretVolume" (list "wandb" . $root.Values.wandb.secretKey "api-key") | nindent 2 }}
  {{- end }}
  - {name: tmp, emptyDir: {sizeLimit: {{ $root.Values.tmpSize }}}}
  - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ $root.Values.shmSize }}}}
  {{- if and $root.Values.demo.enabled $root.Values.data.existingClaim }}
  {{- fail "demo.enabled is true, but data.existingClaim names a claim; remove one of them" }}
  {{- else if and (eq $stage "cache") (not $root.Values.demo.enabled) }}
  {{- $claim := required "data.existingClaim is needed (or demo.enabled=true)" $root.Values.data.existingClaim }}
  - {name: data, persistentVolumeClaim: {claimName: {{ $claim | quote }}, readOnly: true}}
  {{- end }}
  {{- with $root.Values.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
