{{/* A component's section of the values, {} if it has none: (list $ <component>). The pods of `helm test` and of
     `cluster fetch` are placed like the controller. */}}
{{- define "csi-job.section" -}}
{{- $name := has (index . 1) (list "check" "fetch") | ternary "controller" (index . 1) -}}
{{ get (index . 0).Values $name | default dict | toYaml }}
{{- end -}}

{{/* What every pod has in common: (list $ <component>). Its own section comes before the release's values. */}}
{{- define "csi-job.podSpec" -}}
{{- $values := (index . 0).Values -}}
{{- $own := include "csi-job.section" . | fromYaml -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" "schedulerName" "resourceClaims" }}
{{- with get $own $field | default (get $values $field) }}
{{ dict $field . | toYaml }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Annotations of a component's Job or pods, if any: (list $ <component> <those of the chart> <those of the release>). */}}
{{- define "csi-job.annotations" -}}
{{- $own := include "csi-job.section" . | fromYaml -}}
{{- with merge dict (index . 2) ($own.annotations | default dict) (index . 3 | default dict) -}}
annotations: {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Labels and annotations of a pod: (list $ <component> <annotations of the chart>). */}}
{{- define "csi-job.podMetadata" -}}
labels: {{- include "csi-job.labels" (slice . 0 2) | nindent 2 }}
{{- with include "csi-job.annotations" (append . (index . 0).Values.podAnnotations) }}
{{ . }}
{{- end }}
{{- end -}}

{{/* The user's containers of a pod, which start before the chart's: (list $ <component>). A sidecar runs as long as they.
     What one says at a failure is shown like the chart's own errors. */}}
{{- define "csi-job.initContainers" -}}
{{- $values := (index . 0).Values -}}
{{- $own := include "csi-job.section" . | fromYaml -}}
{{- $containers := list -}}
{{- range concat ($values.sidecars | default list) ($own.sidecars | default list) -}}
{{- $containers = append $containers (merge (dict "restartPolicy" "Always") (deepCopy .)) -}}
{{- end -}}
{{- range concat $containers ($values.initContainers | default list) ($own.initContainers | default list) }}
- {{ merge (deepCopy .) (dict "terminationMessagePolicy" "FallbackToLogsOnError") (hasKey . "securityContext" | ternary dict (dict "securityContext" $values.securityContext)) | toRawJson }}
{{- end -}}
{{- end -}}

{{/* The user's ConfigMaps and Secrets whose keys become variables, if any: (list $ <component>). */}}
{{- define "csi-job.envFrom" -}}
{{- $own := include "csi-job.section" . | fromYaml -}}
{{- with concat ((index . 0).Values.envFrom | default list) ($own.envFrom | default list) -}}
envFrom: {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Kueue's queue in which the Job of a component waits, "" if none: (list $ <component>). */}}
{{- define "csi-job.queue" -}}
{{- $labels := include "csi-job.labels" (slice . 0 2) | fromYaml -}}
{{- $ofAll := has (index . 1) (list "cache" "search" "final") | ternary (index . 0).Values.kueue.queueName "" -}}
{{- hasKey $labels "kueue.x-k8s.io/queue-name" | ternary (get $labels "kueue.x-k8s.io/queue-name") $ofAll -}}
{{- end -}}

{{/* Resources of a component's container without GPUs: (list $ <component>). */}}
{{- define "csi-job.resources" -}}
{{- $resources := (include "csi-job.section" . | fromYaml).resources -}}
{{- if include "csi-job.queue" . -}}
{{- /* Kueue admits no pod that requests a resource its queue does not cover, and few queues cover this one. */ -}}
{{- range $kind, $amounts := pick $resources "requests" "limits" -}}{{- $_ := set $resources $kind (omit $amounts "ephemeral-storage") -}}{{- end -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{/* GPUs of a stage's pod, also if requested by its `resources`: (list $ <stage>). */}}
{{- define "csi-job.numGpus" -}}
{{- $own := include "csi-job.section" . | fromYaml -}}
{{ $own.gpus | default (get (($own.resources).limits | default dict) (index . 0).Values.gpuResource) | int }}
{{- end -}}

{{/* Whether a stage's pod requests a GPU, by whatever name: "true", else "": (list $ <stage>). What it claims by dynamic
     resource allocation counts as one: only drivers know what it is. */}}
{{- define "csi-job.requestsGpu" -}}
{{- $own := include "csi-job.section" . | fromYaml -}}
{{- $resources := $own.resources | default dict -}}
{{- $found := or $own.gpus $resources.claims -}}
{{- range $name, $amount := $resources.limits -}}
{{- $isGpu := or (eq $name (index $ 0).Values.gpuResource) (regexMatch "^(nvidia|amd)[.]com/" $name) -}}
{{- $found = or $found (and $isGpu (ne (toString $amount) "0")) -}}
{{- end -}}
{{- if $found }}true{{ end -}}
{{- end -}}

{{/* Image and security of a container: (list $ image). */}}
{{- define "csi-job.containerImage" -}}
image: {{ include "csi-job.image" . | quote }}
imagePullPolicy: {{ include "csi-job.pullPolicy" (index . 0) }}
securityContext: {{- toYaml (index . 0).Values.securityContext | nindent 2 }}
{{- end -}}

{{/* What the end of a pod means for its Job: (list <name of each container of csi-job>...). A pod that is drained, preempted,
     scaled down or deleted (143, after SIGTERM) hands its work over and counts as no failure. A configuration error (2) or
     a failed study (3) fails the Job at once. Any other error is retried, whatever a sidecar says when it is stopped.
     An image without csi-job (126, 127) is found by the controller, which runs it first. A node that can't read its
     image ends a pod in the same way, so the stages' pods, which would all be stopped, are retried. */}}
{{- define "csi-job.podFailurePolicy" -}}
rules:
  - {action: Ignore, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
  {{- range . }}
  - {action: Ignore, onExitCodes: {containerName: {{ . }}, operator: In, values: [143]}}
  - {action: FailJob, onExitCodes: {containerName: {{ . }}, operator: In, values: [2, 3{{ if eq . "controller" }}, 126, 127{{ end }}]}}
  {{- end }}
{{- end -}}

{{- define "csi-job.databaseVolumes" -}}
{{ include "csi-job.secretVolume" (list "database" (include "csi-job.databaseSecret" .) .Values.database.secretKey "password") }}
{{- with .Values.database.external.caSecret }}
{{ include "csi-job.secretVolume" (list "database-ca" . ($.Values.database.external.caKey | default "ca.crt") "ca.crt") }}
{{- end }}
{{- end -}}

{{- define "csi-job.databaseMounts" -}}
- {name: database, mountPath: /run/secrets/database, readOnly: true}
{{- if .Values.database.external.caSecret }}
- {name: database-ca, mountPath: /run/secrets/database-ca, readOnly: true}
{{- end }}
{{- end -}}

{{/* libpq's variables for TLS. */}}
{{- define "csi-job.databaseTls" -}}
{{- with .Values.database.external }}
{{- with .sslMode | default (empty .caSecret | ternary "" "verify-full") }}
- {name: PGSSLMODE, value: {{ . }}}
{{- end }}
{{- if .caSecret }}
- {name: PGSSLROOTCERT, value: /run/secrets/database-ca/ca.crt}
{{- end }}
{{- end }}
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
