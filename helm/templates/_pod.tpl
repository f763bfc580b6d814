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
  terminationGracePeriodSeconds: {{ .root.Values.terminationGracePeriodSeconds | int64 }}
  securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 4 }}
  {{- with .root.Values.global.imagePullSecrets }}
  imagePullSecrets: {{- include "csi-job.pullSecrets" $.root | nindent 4 }}
  {{- end }}
  {{- with include "csi-job.placement" $values }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .init }}
  initContainers:
    {{- range . }}
    - {{- include "csi-job.container" (dict "root" $.root "values" $values "stage" $.stage "step" .) | nindent 6 }}
    {{- end }}
  {{- end }}
  containers:
    - {{- include "csi-job.container" (dict "root" .root "values" $values "stage" .stage "step" .main) | nindent 6 }}
  volumes: {{- include "csi-job.volumes" . | nindent 4 }}
{{- end -}}

{{/* On which nodes a pod runs, and how: (its values). */}}
{{- define "csi-job.placement" -}}
{{- $placement := dict -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" -}}
{{- with index $ $key -}}{{- $_ := set $placement $key . -}}{{- end -}}
{{- end -}}
{{- with $placement -}}{{ toYaml . }}{{- end -}}
{{- end -}}

{{/* One step of a stage: (dict "root" $ "values" <the stage's values> "stage" <its name> "step" <step>). */}}
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

{{/* Variables of a container, each once: the stage's win over the release's, and both over the chart's where that does
     no harm: (dict "root" $ "values" <the stage's values> "stage" <its name> "step" <step>). */}}
{{- define "csi-job.environment" -}}
{{- $harmless := list "CSI_JOB_STORAGE__CONNECT_S" "TORCH_HOME" "WAIT_S" -}}
{{- $names := list -}}
{{- $found := dict -}}
{{- $ours := dict -}}
{{- range include "csi-job.chartEnvironment" . | fromYamlArray -}}
{{- $names = append $names .name -}}
{{- $_ := set $found .name . -}}
{{- $_ := set $ours .name true -}}
{{- end -}}
{{- range concat (.root.Values.env | default list) (.values.env | default list) -}}
{{- if and (hasKey $ours .name) (not (has .name $harmless)) -}}
{{- fail (printf "env: the chart itself sets %s; remove it from env" .name) -}}
{{- end -}}
{{- if not (hasKey $found .name) -}}{{- $names = append $names .name -}}{{- end -}}
{{- $_ := set $found .name . -}}
{{- end -}}
{{- $lines := list -}}
{{- range $names -}}{{- $lines = append $lines (get $found . | toRawJson | printf "- %s") -}}{{- end -}}
{{ join "\n" $lines }}
{{- end -}}

{{/* What the chart knows better than the settings tree. The check before the stages waits for a database that starts;
     that of `helm test` has no such patience. The number of pods is given by reference, since another parallelism is no
     reason to run the stage again. The first stage alone makes tables and study. */}}
{{- define "csi-job.chartEnvironment" -}}
{{- $storage := dig "storage" dict (.root.Values.job | default dict) -}}
{{- $outage := dig "outage_s" 900 $storage -}}
- {name: CSI_JOB_WORK, value: /work}
- {name: CSI_JOB_STORAGE__URL, value: {{ include "csi-job.databaseUrl" .root | quote }}}
- {name: CSI_JOB_STORAGE__PASSWORD_FILE, value: /run/secrets/database/password}
- {name: CSI_JOB_STORAGE__CONNECT_S, value: {{ dig "connect_s" $outage $storage | quote }}}
{{- if .step.name }}
# On the volume that the stages share: what the first one fetches, the others have no way to.
- {name: TORCH_HOME, value: /work/weights}
{{- end }}
{{- if has (.stage | default "") (list "search" "final") }}
- {name: CSI_JOB_STORAGE__CREATE_TABLES, value: "false"}
{{- end }}
{{- if and .step.data (eq .step.name "check") }}
- {name: WAIT_S, value: {{ $outage | quote }}}
{{- end }}
{{- if eq (.step.name | default "") "check" }}
- {name: NUM_PODS, valueFrom: {configMapKeyRef: {name: {{ include "csi-job.fullname" .root }}-settings, key: num-pods}}}
{{- end }}
{{- if .step.data }}
- {name: CSI_JOB_RADIOGRAPHS__LABELS, value: {{ printf "/data/%s" .root.Values.data.labels | quote }}}
- {name: CSI_JOB_RADIOGRAPHS__IMAGES, value: {{ printf "/data/%s" .root.Values.data.images | quote }}}
{{- end }}
{{- if and .step.name .root.Values.wandb.existingSecret }}
- {name: CSI_JOB_TRACKING__WANDB_API_KEY_FILE, value: /run/secrets/wandb/api-key}
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
