{{- define "csi-job.databaseSecurity" -}}
{{- $security := omit .Values.podSecurityContext "runAsUser" "runAsGroup" "fsGroup" -}}
{{- with .Values.databaseUser -}}
{{- $security = merge $security (dict "runAsUser" (int .) "runAsGroup" (int .) "fsGroup" (int .)) -}}
{{- end -}}
{{ toYaml $security }}
{{- end -}}

{{- define "csi-job.databaseContainer" -}}
{{- $command := "pg_isready --username=csi --dbname=csi --host=127.0.0.1" -}}
{{- $ready := dict "exec" (dict "command" (splitList " " $command)) "timeoutSeconds" 5 -}}
{{- /* Alive is also a server that turns connections away (exit 1), since it starts, recovers or stops. */ -}}
{{- $alive := dict "exec" (dict "command" (list "sh" "-c" (printf "%s; test $? -lt 2" $command))) "timeoutSeconds" 5 -}}
name: postgres
image: {{ include "csi-job.image" (list . .Values.database.image) }}
imagePullPolicy: {{ include "csi-job.pullPolicy" . }}
args: [-c, max_connections={{ .Values.database.maxConnections | int64 }}]
env:
  - {name: POSTGRES_USER, value: csi}
  - {name: POSTGRES_DB, value: csi}
  - {name: POSTGRES_PASSWORD_FILE, value: /run/secrets/database/{{ .Values.database.secretKey }}}
  - {name: PGDATA, value: /var/lib/postgresql/data/pgdata}
ports: [{name: postgresql, containerPort: 5432}]
startupProbe: {{- toYaml (merge (dict "periodSeconds" 2 "failureThreshold" 150) $ready) | nindent 2 }}
readinessProbe: {{- toYaml (merge (dict "periodSeconds" 5) $ready) | nindent 2 }}
livenessProbe: {{- toYaml (merge (dict "periodSeconds" 20 "failureThreshold" 6) $alive) | nindent 2 }}
resources: {{- toYaml .Values.database.resources | nindent 2 }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - {name: data, mountPath: /var/lib/postgresql/data}
  - {name: password, mountPath: /run/secrets/database, readOnly: true}
  - {name: accounts, mountPath: /etc/passwd, subPath: passwd, readOnly: true}
  - {name: run, mountPath: /var/run/postgresql}
  - {name: tmp, mountPath: /tmp}
  - {name: shm, mountPath: /dev/shm}
{{- end -}}

{{/* The password of the Secret that is there, also under another key than it has now: (dict "old" <Secret> "key" <key>). */}}
{{- define "csi-job.keptPassword" -}}
{{- $data := get (.old | default dict) "data" | default dict -}}
{{- if hasKey $data .key -}}
{{ get $data .key }}
{{- else if $data -}}
{{ get $data (keys $data | sortAlpha | first) }}
{{- end -}}
{{- end -}}

{{/* Port of the external database: the one that its URL names, else database.external.port. */}}
{{- define "csi-job.externalPort" -}}
{{- $port := .Values.database.external.port | int -}}
{{- $named := regexFind ":[0-9]+$" (regexFind "@[^/?]*" .Values.database.external.url) | trimPrefix ":" -}}
{{- if and $named (ne $port 5432) (ne $port (int $named)) -}}
{{- fail (printf "database.external.port is %d, and database.external.url names port %s; remove one of them" $port $named) -}}
{{- end -}}
{{ $named | default $port }}
{{- end -}}
