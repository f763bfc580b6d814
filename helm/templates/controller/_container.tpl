{{- define "csi-job.controllerContainer" -}}
name: controller
{{ include "csi-job.containerImage" (list . .Values.image) }}
args:
  - cluster
  - run
  - {{ include "csi-job.config" . }}
  - --stages={{ include "csi-job.fullname" . }}-stages
  - --digest=@digest@
  - --missing-seconds={{ .Values.controller.missingSeconds | int64 }}
  - --max-rounds={{ .Values.controller.maxRounds | int64 }}
  {{- with .Values.budget.hours }}
  - --budget-hours={{ . }}
  {{- end }}
  {{- with .Values.budget.gpuHours }}
  {{- if not (include "csi-job.numGpus" (list $ "search") | int) }}
  {{- fail "budget.gpuHours counts search.gpus, which is 0; set budget.hours instead" }}
  {{- end }}
  - --budget-gpu-hours={{ . }}
  {{- end }}
  {{- if (.Values.metrics).enabled }}
  - --metrics-port={{ .Values.metrics.port | int64 }}
  {{- end }}
{{- if (.Values.metrics).enabled }}
ports: [{name: metrics, containerPort: {{ .Values.metrics.port | int64 }}}]
{{- end }}
{{- with include "csi-job.envFrom" (list . "controller") }}
{{ . }}
{{- end }}
env: {{- include "csi-job.environment" (list . "controller" "controller") | nindent 2 }}
resources: {{- include "csi-job.resources" (list . "controller") | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - {name: settings, mountPath: /etc/csi-job, readOnly: true}
  {{- include "csi-job.databaseMounts" . | nindent 2 }}
  - {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- with .Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
