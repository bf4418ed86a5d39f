{{/* `piko` for a release of that name, `RELEASE-piko` for others. */}}
{{- define "piko.name" -}}
{{- ternary .Release.Name (printf "%s-piko" .Release.Name) (contains "piko" .Release.Name) | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "piko.selector" -}}
app.kubernetes.io/name: piko
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "piko.agentSelector" -}}
app.kubernetes.io/name: piko-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "piko.common" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "piko.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "piko.clusterSecret" -}}
{{ .Values.clusterSecret.existingSecret | default (printf "%s-cluster" (include "piko.name" .)) }}
{{- end }}

{{/* The nodes' configuration: the chart's, then the owner's over it. */}}
{{- define "piko.serverConfig" -}}
{{- $cluster := dict "node_id_prefix" "${POD_NAME}-" "join" (list (include "piko.name" .)) "abort_if_join_fails" false
      "secret_file" "/secrets/cluster" "gossip" (dict "advertise_addr" "${POD_IP}") }}
{{- $config := dict "cluster" $cluster "shutdown_delay" (printf "%ds" (int .Values.server.shutdownDelaySeconds))
      "grace_period" (printf "%ds" (int .Values.server.gracePeriodSeconds)) }}
{{- range $port, $secret := .Values.server.tls }}
{{- if $secret }}
{{- $_ := set $config $port (dict "tls" (dict "cert" (printf "/tls/%s/tls.crt" $port) "key" (printf "/tls/%s/tls.key" $port))) }}
{{- end }}
{{- end }}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.server.config)) }}
{{- end }}

{{- define "piko.agentConfig" -}}
{{- $connect := dict "url" (.Values.agent.url | default (printf "http://%s-public:8001" (include "piko.name" .))) }}
{{- if .Values.agent.tokenSecret.name }}{{ $_ := set $connect "token_file" "/secrets/token" }}{{ end }}
{{- $config := dict "connect" $connect "listeners" .Values.agent.listeners
      "server" (dict "enabled" true "bind_addr" ":5000") "grace_period" (printf "%ds" (int .Values.agent.gracePeriodSeconds)) }}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.agent.config)) }}
{{- end }}

{{- define "piko.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65534
runAsGroup: 65534
fsGroup: 65534
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "piko.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "piko.placing" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
