{{- define "csi-job.dashboardContainer" -}}
{{- $probe := dict "httpGet" (dict "path" "/dashboard" "port" "http") "periodSeconds" 10 -}}
name: dashboard
image: {{ include "csi-job.image" (list . .Values.dashboard.image) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
# libpq reads the password from the file that PGPASSFILE names; it is in no process list.
command: [sh, -c]
args:
  - |
    umask 077
    printf '*:*:*:*:%s\n' "$(cat /run/secrets/database/password)" > "$PGPASSFILE"
    exec optuna-dashboard "$STORAGE" --host 0.0.0.0 --port 8080
env:
  - {name: STORAGE, value: {{ include "csi-job.databaseUrl" . | quote }}}
  - {name: PGPASSFILE, value: /tmp/pgpass}
ports: [{name: http, containerPort: 8080}]
readinessProbe: {{- toYaml $probe | nindent 2 }}
livenessProbe: {{- toYaml $probe | nindent 2 }}
resources: {{- toYaml .Values.dashboard.resources | nindent 2 }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - {name: database, mountPath: /run/secrets/database, readOnly: true}
  - {name: tmp, mountPath: /tmp}
{{- end -}}
