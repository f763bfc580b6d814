{{- define "csi-job.databaseSecurity" -}}
{{- $security := omit .Values.podSecurityContext "runAsUser" "runAsGroup" "fsGroup" -}}
{{- with .Values.databaseUser -}}
{{- $security = merge $security (dict "runAsUser" (int .) "runAsGroup" (int .) "fsGroup" (int .)) -}}
{{- end -}}
{{ toYaml $security }}
{{- end -}}

{{- define "csi-job.databaseContainer" -}}
{{- $ready := list "pg_isready" "--username=csi" "--dbname=csi" "--host=127.0.0.1" -}}
{{- $alive := list "sh" "-c" (printf "%s; test $? -lt 2" (join " " $ready)) -}}
name: postgres
{{ include "csi-job.containerImage" (list . .Values.database.image) }}
args: [-c, max_connections={{ .Values.database.maxConnections | int64 }}]
env:
  - {name: POSTGRES_USER, value: csi}
  - {name: POSTGRES_DB, value: csi}
  - {name: POSTGRES_PASSWORD_FILE, value: /run/secrets/database/{{ .Values.database.secretKey }}}
  - {name: PGDATA, value: /var/lib/postgresql/data/pgdata}
ports: [{name: postgresql, containerPort: 5432}]
terminationMessagePolicy: FallbackToLogsOnError
# A server that rejects connections (exit 1) because it is starting, recovering or stopping is alive.
startupProbe:
  exec: {command: {{ toRawJson $alive }}}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 150
readinessProbe:
  exec: {command: [{{ join ", " $ready }}]}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  exec: {command: {{ toRawJson $alive }}}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
resources: {{- include "csi-job.resources" (list . "database") | nindent 2 }}
volumeMounts:
  - {name: data, mountPath: /var/lib/postgresql/data}
  - {name: password, mountPath: /run/secrets/database, readOnly: true}
  - {name: accounts, mountPath: /etc/passwd, subPath: passwd, readOnly: true}
  - {name: run, mountPath: /var/run/postgresql}
  - {name: tmp, mountPath: /tmp}
  - {name: shm, mountPath: /dev/shm}
{{- end -}}

{{/* The password of the existing Secret, even under a key other than today's: (dict "old" <Secret> "key" <key>). */}}
{{- define "csi-job.keptPassword" -}}
{{- $data := get (.old | default dict) "data" | default dict -}}
{{- if hasKey $data .key -}}
{{ get $data .key }}
{{- else if $data -}}
{{ get $data (keys $data | sortAlpha | first) }}
{{- end -}}
{{- end -}}

{{/* Port of the external database: the one in its URL, else database.external.port. */}}
{{- define "csi-job.externalPort" -}}
{{- $port := .Values.database.external.port | int -}}
{{- $named := regexFind ":[0-9]+$" (regexFind "@[^/?]*" .Values.database.external.url) | trimPrefix ":" -}}
{{- if and $named (ne $port 5432) (ne $port (int $named)) -}}
{{- fail (printf "database.external.port is %d, but database.external.url names port %s; remove one of them" $port $named) -}}
{{- end -}}
{{ $named | default $port }}
{{- end -}}
