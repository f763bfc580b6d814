{{- define "csi-job.dashboardContainer" -}}
name: dashboard
{{ include "csi-job.containerImage" (list . .Values.image) }}
# libpq reads the password from the file named by PGPASSFILE; it appears in no process list.
command: [sh, -c]
args:
  - |
    # Only the first stage creates the tables; a dashboard that starts earlier would create its own.
    until csi-job study list >/dev/null 2>&1; do sleep 5; done
    umask 077
    printf '*:*:*:*:%s\n' "$(sed 's/[\\:]/\\&/g' /run/secrets/database/password)" > "$PGPASSFILE"
    exec optuna-dashboard "$STORAGE" --host 0.0.0.0 --port 8080
env:
  - {name: CSI_JOB_STORAGE__URL, value: {{ include "csi-job.databaseUrl" . | quote }}}
  - {name: CSI_JOB_STORAGE__PASSWORD_FILE, value: /run/secrets/database/password}
  - {name: CSI_JOB_STORAGE__CONNECT_S, value: "5"}
  - {name: STORAGE, value: {{ include "csi-job.databaseUrl" . | quote }}}
  - {name: PGPASSFILE, value: /tmp/pgpass}
  {{- range .Values.env }}
  {{- if not (has .name (list "CSI_JOB_STORAGE__CONNECT_S" "STORAGE" "PGPASSFILE")) }}
  - {{ toRawJson . }}
  {{- end }}
  {{- end }}
ports: [{name: http, containerPort: 8080}]
startupProbe: {tcpSocket: {port: http}, periodSeconds: 5, failureThreshold: 720}
readinessProbe: {httpGet: {path: /dashboard, port: http}, periodSeconds: 10, timeoutSeconds: 5}
livenessProbe: {tcpSocket: {port: http}, periodSeconds: 30}
resources: {{- toYaml .Values.dashboard.resources | nindent 2 }}
volumeMounts:
  - {name: database, mountPath: /run/secrets/database, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- with .Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
