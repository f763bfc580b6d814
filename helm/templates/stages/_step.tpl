{{/* A container of a stage without name and arguments: (list $ <stage> <step>). */}}
{{- define "csi-job.step" -}}
{{- $root := index . 0 -}}
{{- $stage := index . 1 -}}
{{- $resources := include "csi-job.resources" . | fromYaml -}}
{{- with (include "csi-job.section" . | fromYaml).gpus -}}
{{- $gpus := dict $root.Values.gpuResource . -}}
{{- $resources = mergeOverwrite $resources (dict "requests" $gpus "limits" $gpus) -}}
{{- end -}}
{{ include "csi-job.containerImage" (list $root $root.Values.image) }}
{{- with include "csi-job.envFrom" . }}
{{ . }}
{{- end }}
env: {{- include "csi-job.environment" . | nindent 2 }}
resources: {{- toYaml $resources | nindent 2 }}
# `kubectl describe` shows the last lines of the log after a failure.
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - {name: work, mountPath: /work}
  - {name: settings, mountPath: /etc/csi-job, readOnly: true}
  {{- include "csi-job.databaseMounts" $root | nindent 2 }}
  {{- if $root.Values.wandb.existingSecret }}
  - {name: wandb, mountPath: /run/secrets/wandb, readOnly: true}
  {{- end }}
  - {name: tmp, mountPath: /tmp}
  - {name: shm, mountPath: /dev/shm}
  {{- if and (eq $stage "cache") (not $root.Values.demo.enabled) }}
  - {name: data, mountPath: /data, readOnly: true}
  {{- end }}
  {{- with $root.Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "csi-job.config" -}}--config=/etc/csi-job/settings.yaml{{- end -}}

{{- define "csi-job.checkArgs" -}}
- cluster
- check
- {{ include "csi-job.config" . }}
- --num-gpus={{ include "csi-job.numGpus" (list . "search") }}
- --gpu-resource={{ .Values.gpuResource }}
- --database-secret={{ include "csi-job.databaseSecret" . }}/{{ .Values.database.secretKey }}
{{- with .Values.wandb.existingSecret }}
- --wandb-secret={{ . }}/{{ $.Values.wandb.secretKey }}
{{- end }}
{{- end -}}
