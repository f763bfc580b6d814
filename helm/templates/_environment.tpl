{{/* Environment of a container, as (list $ <stage> <step>): each variable once. The stage's `env` overrides the
     release's, and both override the chart's variables where that is harmless; elsewhere it is an error, as are variables
     for settings that the templates read from `job`. */}}
{{- define "csi-job.environment" -}}
{{- $root := index . 0 -}}
{{- $overridable := list "CSI_JOB_STORAGE__CONNECT_S" "CSI_JOB_LOG_FORMAT" "TORCH_HOME" "WAIT_S" "PGSSLMODE" "PGSSLROOTCERT" -}}
{{- $readHere := list "CACHE__LOCAL_COPY_GIB" "STORAGE__OUTAGE_S" "STUDY__NAME" "TRACKING__WANDB_MODE" "TRACKING__WANDB_PROJECT" "TRIAL__DEVICE" "TRIAL__PRETRAINED" -}}
{{- $names := list -}}
{{- $found := dict -}}
{{- $ours := dict -}}
{{- range include "csi-job.chartEnvironment" . | fromYamlArray -}}
{{- $names = append $names .name -}}
{{- $_ := set $found .name . -}}
{{- $_ := set $ours .name true -}}
{{- end -}}
{{- range concat ($root.Values.env | default list) ((include "csi-job.section" . | fromYaml).env | default list) -}}
{{- $given := .name | upper -}}
{{- range $readHere -}}
{{- if hasPrefix (printf "%s__" $given) (printf "CSI_JOB_%s__" .) -}}
{{- fail (printf "env: the chart, too, depends on what %s sets; set job.%s instead" $given (. | lower | replace "__" ".")) -}}
{{- end -}}
{{- end -}}
{{- if and (hasKey $ours .name) (not (has .name $overridable)) -}}
{{- fail (printf "env: the chart itself sets %s; remove it from env" .name) -}}
{{- end -}}
{{- if not (hasKey $found .name) -}}{{- $names = append $names .name -}}{{- end -}}
{{- $_ := set $found .name . -}}
{{- end -}}
{{- range $i, $name := $names }}
{{- if $i }}
{{ end -}}
- {{ get $found $name | toRawJson }}
{{- end -}}
{{- end -}}

{{/* What the chart knows better than the settings tree, as (list $ <stage> <step>). */}}
{{- define "csi-job.chartEnvironment" -}}
{{- $root := index . 0 -}}
{{- $stage := index . 1 -}}
{{- $step := index . 2 -}}
{{- $job := $root.Values.job | default dict -}}
{{- $outage := dig "storage" "outage_s" 900 $job -}}
- {name: CSI_JOB_WORK, value: /work}
- {name: CSI_JOB_LOG_FORMAT, value: {{ $root.Values.logFormat | default "json" }}}
- {name: CSI_JOB_STORAGE__URL, value: {{ include "csi-job.databaseUrl" $root | quote }}}
- {name: CSI_JOB_STORAGE__PASSWORD_FILE, value: /run/secrets/database/password}
- {name: CSI_JOB_STORAGE__CONNECT_S, value: {{ dig "storage" "connect_s" $outage $job | quote }}}
{{- include "csi-job.databaseTls" $root }}
{{- $isStage := not (has $stage (list "controller" "dashboard")) }}
{{- if eq $stage "controller" }}
- {name: RELEASE_NAME, value: {{ $root.Release.Name | quote }}}
- {name: RELEASE_STAGES, value: {{ include "csi-job.fullname" $root }}-stages}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
{{- else if eq $stage "dashboard" }}
- {name: PGPASSFILE, value: /tmp/pgpass}
- {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
{{- else }}
# On the shared volume: the cache stage downloads the weights, and the other stages have no internet access.
- {name: TORCH_HOME, value: /work/weights}
{{- end }}
{{- if has $stage (list "search" "final") }}
# Only the first stage creates tables and study.
- {name: CSI_JOB_STORAGE__CREATE_TABLES, value: "false"}
{{- end }}
{{- $device := dig "trial" "device" "" $job }}
{{- $gpus := include "csi-job.requestsGpu" . }}
{{- if and (eq $stage "final") (not $gpus) (eq $device "cuda") }}
- {name: CSI_JOB_TRIAL__DEVICE, value: cpu}
{{- else if and $gpus (not $device) }}
# So that a pod that can't use its GPU fails, and is retried, perhaps on another node, rather than train on the CPU.
- {name: CSI_JOB_TRIAL__DEVICE, value: cuda}
{{- end }}
{{- if and (eq $stage "cache") (eq $step "check") }}
# A database that is still starting is worth waiting for here, but not in `helm test`.
- {name: WAIT_S, value: {{ $outage | quote }}}
{{- end }}
{{- if eq $step "check" }}
# By reference: a changed number of pods is no reason to run the stage again.
- {name: NUM_PODS, valueFrom: {configMapKeyRef: {name: {{ include "csi-job.fullname" $root }}-settings, key: num-pods}}}
{{- end }}
{{- if eq $stage "cache" }}
{{- /* All pods of the stage share the phantoms, which one of them draws. */}}
{{- $data := $root.Values.demo.enabled | ternary "/work/phantoms" "/data" }}
- {name: CSI_JOB_RADIOGRAPHS__LABELS, value: {{ printf "%s/%s" $data $root.Values.data.labels | quote }}}
- {name: CSI_JOB_RADIOGRAPHS__IMAGES, value: {{ printf "%s/%s" $data $root.Values.data.images | quote }}}
{{- end }}
{{- if and $isStage $root.Values.wandb.existingSecret }}
- {name: CSI_JOB_TRACKING__WANDB_API_KEY_FILE, value: /run/secrets/wandb/api-key}
{{- end }}
{{- end -}}
