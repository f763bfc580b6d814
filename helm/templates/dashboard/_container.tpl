{{- define "csi-job.dashboardContainer" -}}
name: dashboard
{{ include "csi-job.containerImage" (list . .Values.image) }}
# libpq reads the password from the file named by PGPASSFILE; it appears in no process list.
command: [tini, -s, --, sh, -c]
args:
  - |
    # Only the first stage creates the tables; a dashboard that starts earlier would create its own.
    until csi-job study list >/dev/null 2>&1; do sleep 5; done
    umask 077
    printf '*:*:*:*:%s\n' "$(sed 's/[\\:]/\\&/g' /run/secrets/database/password)" > "$PGPASSFILE"
    # Its server listens for IPv4 only, whatever --host says.
    case $POD_IP in *:*) family=AF_INET6 host=:: ;; *) family=AF_INET host=0.0.0.0 ;; esac
    exec python -c "import socket, socketserver, optuna_dashboard._cli as dashboard
    socketserver.TCPServer.address_family = socket.$family
    dashboard.main()" "$CSI_JOB_STORAGE__URL" --host $host --port 8080
{{- with include "csi-job.envFrom" (list . "dashboard") }}
{{ . }}
{{- end }}
env: {{- include "csi-job.environment" (list . "dashboard" "dashboard") | nindent 2 }}
ports: [{name: http, containerPort: 8080}]
startupProbe: {tcpSocket: {port: http}, periodSeconds: 5, failureThreshold: 720}
readinessProbe: {httpGet: {path: /dashboard, port: http}, periodSeconds: 10, timeoutSeconds: 5}
livenessProbe: {tcpSocket: {port: http}, periodSeconds: 30}
resources: {{- include "csi-job.resources" (list . "dashboard") | nindent 2 }}
volumeMounts:
  {{- include "csi-job.databaseMounts" . | nindent 2 }}
  - {name: tmp, mountPath: /tmp}
  {{- with .Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
