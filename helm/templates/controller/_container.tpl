{{- define "csi-job.controllerContainer" -}}
name: controller
{{ include "csi-job.containerImage" (list . .Values.image) }}
args:
  - cluster
  - run
  - {{ include "csi-job.config" . }}
  - --stages={{ include "csi-job.fullname" . }}-stages
  - --digest={{ include "csi-job.digest" . }}
  - --missing-seconds={{ .Values.controller.missingSeconds | int64 }}
  - --max-rounds={{ .Values.controller.maxRounds | int64 }}
  {{- with .Values.budget.hours }}
  - --budget-hours={{ . }}
  {{- end }}
  {{- with .Values.budget.gpuHours }}
  {{- if and $.Values.search.resourceClaims (not $.Values.search.gpus) }}
  {{- fail "budget.gpuHours counts search.gpus, not search.resourceClaims; set budget.hours" }}
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
env:
  - {name: RELEASE_NAME, value: {{ .Release.Name | quote }}}
  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: RELEASE_STAGES, value: {{ include "csi-job.fullname" . }}-stages}
  {{- include "csi-job.environment" (list . "controller" "controller") | nindent 2 }}
resources: {{- toYaml .Values.controller.resources | nindent 2 }}
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
