{{/* Prefix of every object's name, at most 36 characters: stage, digest and pod suffix must fit into 63. Helm accepts
     releases whose names begin with a digit or have dots, but Services can have neither, and Indexed Jobs no dots. */}}
{{- define "csi-job.fullname" -}}
{{- $name := .Values.fullnameOverride | default (contains "csi-job" .Release.Name | ternary .Release.Name (printf "%s-csi-job" .Release.Name)) -}}
{{- if contains "." $name }}
{{- fail (printf "Jobs can't be named after the release %q, since their names have no dots; choose another release name, or set fullnameOverride" .Release.Name) }}
{{- else if and (or .Values.database.bundled .Values.dashboard.enabled) (not (regexMatch "^[a-z]" $name)) }}
{{- fail (printf "Services can't be named after the release %q, since their names begin with a letter; choose another release name, or set fullnameOverride, and work.existingClaim if there is a volume to keep" .Release.Name) }}
{{- end }}
{{- if gt (len $name) 36 }}{{ printf "%s-%s" ($name | trunc 29 | trimSuffix "-") ($name | sha256sum | trunc 6) }}{{ else }}{{ $name }}{{ end -}}
{{- end -}}

{{/* Labels that select pods: (list $ component). */}}
{{- define "csi-job.selector" -}}
app.kubernetes.io/name: csi-job
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object: (list $ component [<labels of this object alone>]). Users can't override those by which
     NetworkPolicies, Services and the controller find pods, but may say that something else manages the objects. */}}
{{- define "csi-job.labels" -}}
{{- $own := include "csi-job.section" . | fromYaml -}}
{{- $labels := merge dict (gt (len .) 2 | ternary (last .) dict) ($own.labels | default dict) ((index . 0).Values.commonLabels | default dict) -}}
{{- range list "name" "instance" "component" -}}
{{- $label := printf "app.kubernetes.io/%s" . -}}
{{- if hasKey $labels $label -}}
{{- fail (printf "the chart itself sets the label %s, got %q; remove it from commonLabels and from the sections' labels" $label (get $labels $label)) -}}
{{- end -}}
{{- end -}}
{{ include "csi-job.selector" . }}
{{ merge $labels (dict "app.kubernetes.io/managed-by" (index . 0).Release.Service) | toYaml }}
{{- end -}}

{{/* Name, namespace and labels of an object: (list $ component <suffix of the name> [<labels of this object alone>]). */}}
{{- define "csi-job.metadata" -}}
name: {{ include "csi-job.fullname" (index . 0) }}{{ with index . 2 }}-{{ . }}{{ end }}
namespace: {{ (index . 0).Release.Namespace | quote }}
labels: {{- include "csi-job.labels" (list (index . 0) (index . 1) (gt (len .) 3 | ternary (last .) dict)) | nindent 2 }}
{{- end -}}

{{/* Selects every pod of the release. */}}
{{- define "csi-job.release" -}}
matchLabels: {app.kubernetes.io/name: csi-job, app.kubernetes.io/instance: {{ .Release.Name | quote }}}
{{- end -}}

{{/* An image's reference: (list $ image). */}}
{{- define "csi-job.image" -}}
{{- $image := index . 1 -}}
{{- $registry := (index . 0).Values.global.imageRegistry -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* From a registry an image is pulled at every start, so that the right to it is checked each time. */}}
{{- define "csi-job.pullPolicy" -}}
{{- .Values.image.pullPolicy | default (.Values.global.imageRegistry | empty | ternary "IfNotPresent" "Always") -}}
{{- end -}}

{{/* Digest of everything the controller acts on, and of its own Job, which can't be changed. Each upgrade has a new one, so
     that it retries what failed. */}}
{{- define "csi-job.digest" -}}
{{- $parts := list (toJson .Values) .Release.Revision -}}
{{- range list "controller/_job" "stages/_cache" "stages/_search" "stages/_final" "stages/_fetch" -}}
{{- $parts = append $parts (include (printf "%s/%s.yaml" $.Template.BasePath .) $) -}}
{{- end -}}
{{ toJson $parts | sha256sum | trunc 10 }}
{{- end -}}

{{- define "csi-job.settings" -}}
{{ toYaml (.Values.job | default dict) }}
{{- end -}}

{{- define "csi-job.databaseSecret" -}}
{{- if not (or .Values.database.bundled .Values.database.existingSecret) -}}
{{- fail "database.existingSecret is needed when database.bundled is false" -}}
{{- end -}}
{{ .Values.database.existingSecret | default (printf "%s-database" (include "csi-job.fullname" .)) }}
{{- end -}}

{{- define "csi-job.databaseUrl" -}}
{{- if and .Values.database.bundled .Values.database.external.url -}}
{{- fail "database.external.url is set, but database.bundled is true; set it to false, or remove the URL" -}}
{{- else if regexMatch "[?&](ssl)?password=" .Values.database.external.url -}}
{{- fail "database.external.url has a password; remove it and put it into the Secret that database.existingSecret names" -}}
{{- else if .Values.database.bundled -}}
postgresql+psycopg2://csi@{{ include "csi-job.fullname" . }}-database:5432/csi
{{- else -}}
{{ required "database.external.url is needed when database.bundled is false" .Values.database.external.url }}
{{- end -}}
{{- end -}}

{{- define "csi-job.workClaim" -}}
{{ .Values.work.existingClaim | default (printf "%s-work" (include "csi-job.fullname" .)) }}
{{- end -}}
