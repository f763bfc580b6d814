{{/* The Job of a stage: (dict "root" $ "stage" <name> "init" ... "main" ... "spec" <further fields>). */}}
{{- define "csi-job.stage" -}}
{{- $values := index .root.Values .stage -}}
apiVersion: batch/v1
kind: Job
metadata:
  {{- include "csi-job.metadata" (list .root .stage (printf "%s-%s" (include "csi-job.fullname" .root) .stage)) | nindent 2 }}
    {{- with .root.Values.kueue.queueName }}
    kueue.x-k8s.io/queue-name: {{ . | quote }}
    {{- end }}
spec:
  {{- with .spec }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  backoffLimit: {{ $values.backoffLimit | int64 }}
  {{- end }}
  {{- with $values.deadlineSeconds }}
  activeDeadlineSeconds: {{ . | int64 }}
  {{- end }}
  {{- with .root.Values.ttlSecondsAfterFinished }}
  ttlSecondsAfterFinished: {{ . | int64 }}
  {{- end }}
  # A pod that is sent away (drained, preempted, scaled down, deleted) counts for nothing: it has handed its work
  # over. A misconfiguration (exit 2) ends the Job at once; any other error is tried again.
  podFailurePolicy:
    rules:
      - {action: Ignore, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
      - {action: Ignore, onExitCodes: {operator: In, values: [143]}}
      - {action: FailJob, onExitCodes: {operator: In, values: [2, 3]}}
  template: {{- include "csi-job.podTemplate" . | nindent 4 }}
{{- end -}}

{{- define "csi-job.config" -}}--config=/etc/csi-job/settings.yaml{{- end -}}

{{- define "csi-job.stage.cache" -}}
{{- $config := include "csi-job.config" . -}}
{{- $init := list -}}
{{- if .Values.demo.enabled -}}
{{- $init = append $init (dict "name" "phantoms" "data" true "args" (list "phantoms" "/data" (printf "--num-images=%d" (int .Values.demo.numImages)) (printf "--seed=%d" (int .Values.demo.seed)))) -}}
{{- end -}}
{{- $init = append $init (dict "name" "check" "data" true "args" (include "csi-job.checkArgs" . | fromYamlArray)) -}}
{{- $init = append $init (dict "name" "cache" "data" true "args" (list "cache" "build" $config)) -}}
{{- include "csi-job.stage" (dict "root" . "stage" "cache" "init" $init "main" (dict "name" "study" "data" true "args" (list "study" "create" $config))) -}}
{{- end -}}

{{- define "csi-job.stage.search" -}}
{{- $number := int .Values.search.parallelism -}}
{{- $spec := dict "completionMode" "Indexed" "parallelism" $number "completions" (max 1 $number) "backoffLimitPerIndex" (int64 .Values.search.backoffLimit) -}}
{{- include "csi-job.stage" (dict "root" . "stage" "search" "spec" $spec "main" (dict "name" "search" "args" (list "hyperopt" (include "csi-job.config" .)))) -}}
{{- end -}}

{{- define "csi-job.stage.final" -}}
{{- $config := include "csi-job.config" . -}}
{{- $study := dig "study" "name" "csi_optimization" (.Values.job | default dict) -}}
{{- $init := list
  (dict "name" "best" "args" (list "report" $config))
  (dict "name" "train" "args" (list "train-optimized" $config (printf "--hyperparams=/work/models/hyperopt/%s_best_params.json" $study)))
  (dict "name" "evaluate" "args" (list "evaluate" $config "--model-path=/work/models/optimized_model.safetensors"))
-}}
{{- include "csi-job.stage" (dict "root" . "stage" "final" "init" $init "main" (dict "name" "report" "args" (list "report" $config))) -}}
{{- end -}}

{{/* The pod through which `csi-job cluster fetch` reads the volume; it ends by itself. */}}
{{- define "csi-job.fetchPod" -}}
apiVersion: v1
kind: Pod
metadata:
  {{- include "csi-job.metadata" (list . "fetch" (printf "%s-fetch" (include "csi-job.fullname" .))) | nindent 2 }}
  {{- with .Values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  restartPolicy: Never
  serviceAccountName: {{ include "csi-job.fullname" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  activeDeadlineSeconds: 3600
  terminationGracePeriodSeconds: 1
  securityContext: {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.global.imagePullSecrets }}
  imagePullSecrets: {{- include "csi-job.pullSecrets" $ | nindent 4 }}
  {{- end }}
  {{- with include "csi-job.placement" .Values.controller }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: fetch
      image: {{ include "csi-job.image" (list . .Values.image) }}
      imagePullPolicy: {{ include "csi-job.pullPolicy" . }}
      command: [sleep, "3600"]
      resources: {{- toYaml .Values.controller.resources | nindent 8 }}
      securityContext: {{- toYaml .Values.securityContext | nindent 8 }}
      readinessProbe: {exec: {command: [test, -r, /work]}, periodSeconds: 2}
      livenessProbe: {exec: {command: ["true"]}, periodSeconds: 60}
      volumeMounts: [{name: work, mountPath: /work, readOnly: true}]
  volumes:
    - {name: work, persistentVolumeClaim: {claimName: {{ include "csi-job.workClaim" . | quote }}}}
{{- end -}}

{{- define "csi-job.checkArgs" -}}
- cluster
- check
- {{ include "csi-job.config" . }}
- --num-gpus={{ int .Values.search.gpus }}
- --gpu-resource={{ .Values.gpuResource }}
- --database-secret={{ include "csi-job.databaseSecret" . }}/{{ .Values.database.secretKey }}
{{- with .Values.wandb.existingSecret }}
- --wandb-secret={{ . }}/{{ $.Values.wandb.secretKey }}
{{- end }}
{{- end -}}

{{/* The pod of `helm test`. */}}
{{- define "csi-job.checkPod" -}}
{{- $args := include "csi-job.checkArgs" . | fromYamlArray -}}
{{- $values := dict "check" .Values.controller -}}
{{- $root := merge (dict "Values" (merge $values .Values)) . -}}
{{- include "csi-job.podTemplate" (dict "root" $root "stage" "check" "main" (dict "name" "check" "args" $args)) -}}
{{- end -}}
