{{- define "csi-job.dashboardContainer" -}}
name: dashboard
image: {{ include "csi-job.image" (list . .Values.image) }}
imagePullPolicy: {{ include "csi-job.pullPolicy" . }}
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
startupProbe: {tcpSocket: {port: http}, periodSeconds: 5, failureThreshold: 60}
readinessProbe: {httpGet: {path: /dashboard, port: http}, periodSeconds: 10, timeoutSeconds: 5}
livenessProbe: {tcpSocket: {port: http}, periodSeconds: 30}
resources: {{- toYaml .Values.dashboard.resources | nindent 2 }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - {name: database, mountPath: /run/secrets/database, readOnly: true}
  - {name: tmp, mountPath: /tmp}
{{- end -}}
