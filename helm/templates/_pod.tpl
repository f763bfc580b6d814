{{/* The pod template of a stage: (dict "root" $ "stage" <name> "init" (list of steps) "main" <step>), where a step is
     (dict "name" ... "args" (list ...) "data" <bool>). The steps run one after the other. */}}
{{- define "csi-job.podTemplate" -}}
{{- $values := index .root.Values .stage -}}
metadata:
  labels: {{- include "csi-job.labels" (list .root .stage) | nindent 4 }}
  annotations:
    csi-job/settings: {{ include "csi-job.settings" .root | sha256sum | trunc 16 | quote }}
    {{- with .root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  restartPolicy: Never
  serviceAccountName: {{ include "csi-job.fullname" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .root.Values.terminationGracePeriodSeconds }}
  securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 4 }}
  {{- with .root.Values.global.imagePullSecrets }}
  imagePullSecrets: {{- include "csi-job.pullSecrets" $.root | nindent 4 }}
  {{- end }}
  {{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" }}
  {{- with index $values $key }}
  {{ $key }}: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- with .init }}
  initContainers:
    {{- range . }}
    - {{- include "csi-job.container" (dict "root" $.root "values" $values "step" .) | nindent 6 }}
    {{- end }}
  {{- end }}
  containers:
    - {{- include "csi-job.container" (dict "root" .root "values" $values "step" .main) | nindent 6 }}
  volumes: {{- include "csi-job.volumes" . | nindent 4 }}
{{- end -}}

{{/* One step of a stage: (dict "root" $ "values" <the stage's values> "step" <step>). */}}
{{- define "csi-job.container" -}}
{{- $resources := deepCopy .values.resources -}}
{{- if .root.Values.kueue.queueName -}}
{{- /* Kueue admits nothing that asks for a resource which its queue does not cover, and few cover this one. */ -}}
{{- range $kind, $asked := $resources -}}{{- $_ := set $resources $kind (omit $asked "ephemeral-storage") -}}{{- end -}}
{{- end -}}
{{- with .values.gpus -}}
{{- $gpus := dict $.root.Values.gpuResource . -}}
{{- $resources = mergeOverwrite $resources (dict "requests" $gpus "limits" $gpus) -}}
{{- end -}}
name: {{ .step.name }}
image: {{ include "csi-job.image" (list .root .root.Values.image) }}
imagePullPolicy: {{ include "csi-job.pullPolicy" .root }}
args: {{- toYaml .step.args | nindent 2 }}
env: {{- include "csi-job.environment" . | nindent 2 }}
resources: {{- toYaml $resources | nindent 2 }}
securityContext: {{- toYaml .root.Values.securityContext | nindent 2 }}
# The last lines of the log are what `kubectl describe` shows of a failure.
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - {name: work, mountPath: /work}
  - {name: settings, mountPath: /etc/csi-job, readOnly: true}
  - {name: database, mountPath: /run/secrets/database, readOnly: true}
  {{- if .root.Values.wandb.existingSecret }}
  - {name: wandb, mountPath: /run/secrets/wandb, readOnly: true}
  {{- end }}
  - {name: tmp, mountPath: /tmp}
  - {name: shm, mountPath: /dev/shm}
  {{- if .step.data }}
  - {name: data, mountPath: /data{{ if not .root.Values.demo.enabled }}, readOnly: true{{ end }}}
  {{- end }}
  {{- with .root.Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Variables of csi-job: what the chart knows better than the settings tree. */}}
{{- define "csi-job.environment" -}}
- {name: CSI_JOB_WORK, value: /work}
- {name: CSI_JOB_STORAGE__URL, value: {{ include "csi-job.databaseUrl" .root | quote }}}
- {name: CSI_JOB_STORAGE__PASSWORD_FILE, value: /run/secrets/database/password}
- {name: CSI_JOB_STORAGE__CONNECT_S, value: {{ dig "storage" "outage_s" 900 (.root.Values.job | default dict) | quote }}}
{{- if and .step.data (eq .step.name "check") }}
# The database may still be starting; the check of `helm test` has no such patience.
- {name: WAIT_S, value: {{ dig "storage" "outage_s" 900 (.root.Values.job | default dict) | quote }}}
{{- end }}
{{- if eq (.step.name | default "") "check" }}
# By reference: another parallelism is no reason to run the stage again.
- {name: NUM_PODS, valueFrom: {configMapKeyRef: {name: {{ include "csi-job.fullname" .root }}-settings, key: num-pods}}}
{{- end }}
{{- if .step.data }}
- {name: CSI_JOB_RADIOGRAPHS__LABELS, value: {{ printf "/data/%s" .root.Values.data.labels | quote }}}
- {name: CSI_JOB_RADIOGRAPHS__IMAGES, value: {{ printf "/data/%s" .root.Values.data.images | quote }}}
{{- end }}
{{- if and .step.name .root.Values.wandb.existingSecret }}
- {name: CSI_JOB_TRACKING__WANDB_API_KEY_FILE, value: /run/secrets/wandb/api-key}
{{- end }}
{{- range concat (.root.Values.env | default list) (.values.env | default list) }}
- {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Volumes of a stage's pod; the data claim is the cache's alone. */}}
{{- define "csi-job.volumes" -}}
- {name: work, persistentVolumeClaim: {claimName: {{ include "csi-job.workClaim" .root | quote }}}}
- {name: settings, configMap: {name: {{ include "csi-job.fullname" .root }}-settings}}
{{ include "csi-job.databaseVolume" .root }}
{{- with .root.Values.wandb.existingSecret }}
{{ include "csi-job.secretVolume" (list "wandb" . $.root.Values.wandb.secretKey "api-key") }}
{{- end }}
- {name: tmp, emptyDir: {sizeLimit: {{ .root.Values.tmpSize }}}}
- {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .root.Values.shmSize }}}}
{{- if eq .stage "cache" }}
{{- if .root.Values.demo.enabled }}
- {name: data, emptyDir: {sizeLimit: 2Gi}}
{{- else }}
- {name: data, persistentVolumeClaim: {claimName: {{ required "data.existingClaim is needed (or demo.enabled=true)" .root.Values.data.existingClaim | quote }}, readOnly: true}}
{{- end }}
{{- end }}
{{- with .root.Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "csi-job.databaseVolume" -}}
{{ include "csi-job.secretVolume" (list "database" (include "csi-job.databaseSecret" .) .Values.database.secretKey "password") }}
{{- end -}}

{{/* One key of a Secret as a file: (list <volume> <secret> <key> <file>). Optional, so that a missing Secret or key is
     said by csi-job in one line and is no pod that waits for ever. */}}
{{- define "csi-job.secretVolume" -}}
- name: {{ index . 0 }}
  secret:
    secretName: {{ index . 1 | quote }}
    items: [{key: {{ index . 2 | quote }}, path: {{ index . 3 }}}]
    optional: true
    defaultMode: 0440
{{- end -}}
