{{- define "proglog.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- /* With the ordinal and a revision's hash behind it, 63 characters at most. */ -}}
{{- define "proglog.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" }}
{{- else if contains (include "proglog.name" .) .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" }}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "proglog.name" .) | trunc 46 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "proglog.headless" -}}
{{ include "proglog.fullname" . }}-peers
{{- end }}

{{- define "proglog.headlessDomain" -}}
{{ include "proglog.headless" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end }}

{{- /* For ever: a selector cannot be changed. */ -}}
{{- define "proglog.selector" -}}
app.kubernetes.io/name: {{ include "proglog.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "proglog.nodeSelector" -}}
{{ include "proglog.selector" . }}
app.kubernetes.io/component: node
{{- end }}

{{- define "proglog.labels" -}}
{{ include "proglog.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "proglog.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end }}
{{- end }}
{{- end }}

{{- define "proglog.serviceAccount" -}}
{{ include "proglog.fullname" . }}
{{- end }}

{{- define "proglog.gossipSecret" -}}
{{ default (printf "%s-gossip" (include "proglog.fullname" .)) .Values.gossip.existingSecret }}
{{- end }}

{{- define "proglog.tlsSecret" -}}
{{ default (printf "%s-tls" (include "proglog.fullname" .)) .Values.tls.existingSecret }}
{{- end }}

{{- define "proglog.hasAcl" -}}
{{- if .Values.acl.policy }}true{{ end }}
{{- end }}

{{- /* What a container may do: the namespace may enforce "restricted". */ -}}
{{- define "proglog.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "proglog.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- /* Settings of a client in a pod: a job, a test. */ -}}
{{- define "proglog.clientEnvironment" -}}
- name: PROGLOG_SERVER
  value: {{ include "proglog.fullname" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:8400
{{- if ne .Values.tls.mode "off" }}
- name: PROGLOG_TLS_CA_FILE
  value: /etc/proglog-tls/ca.crt
- name: PROGLOG_TLS_CERT_FILE
  value: /etc/proglog-tls/tls.crt
- name: PROGLOG_TLS_KEY_FILE
  value: /etc/proglog-tls/tls.key
{{- end }}
{{- end }}

{{- /* What no value of the schema can rule out by itself. */ -}}
{{- define "proglog.check" -}}
{{- with .Values.drain }}
{{- if lt (int .terminationGracePeriodSeconds) (int (add .deadlineSeconds .stopSeconds 10)) }}
{{- fail (printf "drain.terminationGracePeriodSeconds is %v: expected at least drain.deadlineSeconds + drain.stopSeconds + 10 = %v" .terminationGracePeriodSeconds (add .deadlineSeconds .stopSeconds 10)) }}
{{- end }}
{{- end }}
{{- if and .Release.IsInstall (gt (int .Values.bootstrapExpect) (int .Values.replicas)) (gt (int .Values.replicas) 0) }}
{{- fail (printf "bootstrapExpect is %v, and replicas %v: so many nodes would never see each other" .Values.bootstrapExpect .Values.replicas) }}
{{- end }}
{{- if ne .Values.tls.mode "off" }}
{{- if and (not .Values.tls.existingSecret) (not .Values.tls.certManager.enabled) }}
{{- fail "tls.mode is not off: give tls.existingSecret, or tls.certManager.enabled" }}
{{- end }}
{{- end }}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) }}
{{- fail "tls.certManager.issuerRef.name is missing: whom is cert-manager to ask?" }}
{{- end }}
{{- if ne (empty .Values.acl.model) (empty .Values.acl.policy) }}
{{- fail "acl.model and acl.policy go together" }}
{{- end }}
{{- range $key := list "data-dir" "node-name" "bind-addr" "advertise-addr" "rpc-port" "health-addr" "start-join-addrs" "bootstrap" "bootstrap-expect" "tls" "gossip-keys" "drain-timeout" }}
{{- if hasKey $.Values.config $key }}
{{- fail (printf "config.%s is the chart's own to say" $key) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "proglog.settings" -}}
cluster-name: {{ printf "%s.%s" (include "proglog.fullname" .) .Release.Namespace | trunc 64 | trimSuffix "." }}
bind-addr: "[::]:8401"
rpc-port: 8400
health-addr: "[::]:8402"
http-addr: none
http-hosts:
{{- $service := include "proglog.fullname" . }}
  - {{ $service }}
  - {{ $service }}.{{ .Release.Namespace }}
  - {{ $service }}.{{ .Release.Namespace }}.svc
  - {{ $service }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
start-join-addrs: {{ include "proglog.headlessDomain" . }}:8401
{{- if gt (int .Values.bootstrapExpect) 1 }}
bootstrap-expect: {{ .Values.bootstrapExpect }}
{{- else }}
bootstrap: {{ eq (int .Values.replicas) 1 }}
{{- end }}
drain-timeout: {{ .Values.drain.stopSeconds }}s
tls: {{ .Values.tls.mode | quote }}
{{- if eq .Values.tls.mode "off" }}
allow-plaintext: true
{{- else }}
server-tls-cert-file: /etc/proglog-tls/tls.crt
server-tls-key-file: /etc/proglog-tls/tls.key
server-tls-ca-file: /etc/proglog-tls/ca.crt
{{- if eq .Values.tls.mode "optional" }}
allow-plaintext: true
{{- end }}
{{- if not (include "proglog.hasAcl" .) }}
allow-all-clients: true
{{- end }}
{{- end }}
{{- if include "proglog.hasAcl" . }}
acl-model-file: /etc/proglog-acl/model.conf
acl-policy-file: /etc/proglog-acl/policy.csv
{{- end }}
{{- end }}

{{- define "proglog.config" -}}
{{- mergeOverwrite (fromYaml (include "proglog.settings" .)) (deepCopy .Values.config) | toYaml }}
{{- end }}
