{{/* Whether KEDA needs credentials for Kafka. */}}
{{- define "taskflux.kafkaAuthentication" -}}
{{- $kafka := .Values.secrets.kafka -}}
{{- if or (and $kafka.existingSecret (or $kafka.passwordKey $kafka.certKey)) (include "taskflux.ca" (list . "kafka") | fromJson) -}}true{{- end -}}
{{- end -}}

{{/* KEDA's triggers of a handler, YAML: (list $ handler). */}}
{{- define "taskflux.triggers" -}}
{{- $root := first . -}}
{{- $handler := last . -}}
{{- $scaling := $handler.scaling -}}
{{- $pushed := include "taskflux.pushed" . }}
{{- if $pushed }}
{{- include "taskflux.pushTrigger" . }}
{{- if and $handler.topic $scaling.lagThreshold (not $scaling.minReplicas) $root.Values.keda.pushScaler.kafkaTrigger }}
{{- /* KEDA's fallback does not help while no relay answers. It wakes one pod, and leaves the rest to the relays. */}}
{{- include "taskflux.lagTrigger" (list $root $handler 1000000000) }}
{{- end }}
{{- else }}
{{- if and $handler.topic $scaling.lagThreshold }}
{{- include "taskflux.lagTrigger" (list $root $handler $scaling.lagThreshold) }}
{{- end }}
{{- if and $handler.taskType $scaling.runningThreshold }}
{{- /* Lag counts what nobody has taken: without this one a pod would go while it works. */}}
{{- $query := printf "SELECT count(*) FROM claims WHERE type = '%s'" $handler.taskType }}
{{- include "taskflux.countTrigger" (list $root "running" $scaling.runningThreshold $query) }}
{{- end }}
{{- if $scaling.dueThreshold }}
{{- /*
What is overdue by more than a publish takes, but for what an open circuit holds back: no relay would publish that sooner. Counting
ends where it would ask for no more pods.
*/}}
{{- $query := printf "SELECT count(*) FROM (SELECT 1 FROM due LEFT JOIN task_types USING (type) LEFT JOIN circuits USING (provider) WHERE publish_at < now() - interval '5 seconds' AND (dead OR open IS NOT TRUE) LIMIT %d) AS overdue" (mul $scaling.dueThreshold $scaling.maxReplicas) }}
{{- include "taskflux.countTrigger" (list $root "due" $scaling.dueThreshold $query) }}
{{- end }}
{{- end }}
{{- if $scaling.cpuUtilization }}
- type: cpu
  name: cpu
  metricType: Utilization
  metadata: {value: {{ include "taskflux.scalar" $scaling.cpuUtilization | quote }}}
{{- end }}
{{- if $scaling.requestRate }}
- type: prometheus
  name: requests
  metricType: AverageValue
  metadata:
    serverAddress: {{ $root.Values.keda.prometheus.serverAddress }}
    query: {{ include "taskflux.requestQuery" (list $root $handler) | quote }}
    threshold: {{ include "taskflux.scalar" $scaling.requestRate | quote }}
    activationThreshold: "0"
    ignoreNullValues: "true"
{{- end }}
{{- with $scaling.extraTriggers }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end -}}

{{/* The handler that serves the push scaler, as JSON; empty where it is off. */}}
{{- define "taskflux.scalerRelay" -}}
{{- $found := dict -}}
{{- if and .Values.keda.enabled .Values.keda.pushScaler.enabled -}}
{{- range $name, $handler := include "taskflux.enabled" . | fromJson -}}
{{- if eq $handler.target "relay" -}}{{- $found = $handler -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* Whether the relays say how many pods a handler needs: (list $ handler). */}}
{{- define "taskflux.pushed" -}}
{{- $handler := last . -}}
{{- $scaling := $handler.scaling -}}
{{- if include "taskflux.scalerRelay" (first .) | fromJson -}}
{{- if or (and $handler.topic $scaling.lagThreshold) (and $handler.taskType $scaling.runningThreshold) $scaling.dueThreshold -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the relays ask for and tell: taskflux/upkeep/scaler.py. (list $ handler) */}}
{{- define "taskflux.pushTrigger" -}}
{{- $root := first . -}}
{{- $handler := last . -}}
{{- $scaling := $handler.scaling -}}
{{- $push := $root.Values.keda.pushScaler -}}
{{- $relay := include "taskflux.scalerRelay" $root | fromJson }}
- type: external-push
  name: need
  metricType: AverageValue
  metadata:
    scalerAddress: {{ $relay.fullname }}-scaler.{{ $root.Release.Namespace }}.svc:{{ $push.port }}
    maxReplicas: {{ int $scaling.maxReplicas | quote }}
    {{- if and $handler.topic $scaling.lagThreshold }}
    topic: {{ $handler.topic }}
    consumerGroup: {{ $handler.group }}
    lagThreshold: {{ include "taskflux.scalar" $scaling.lagThreshold | quote }}
    {{- end }}
    {{- if $handler.taskType }}
    taskType: {{ $handler.taskType }}
    {{- if $scaling.runningThreshold }}
    runningThreshold: {{ include "taskflux.scalar" $scaling.runningThreshold | quote }}
    {{- end }}
    {{- end }}
    {{- if $scaling.dueThreshold }}
    dueThreshold: {{ include "taskflux.scalar" $scaling.dueThreshold | quote }}
    {{- end }}
    {{- with include "taskflux.rate" . }}
    rate: {{ . | quote }}
    {{- end }}
    {{- if $push.tls.existingSecret }}
    enableTLS: "true"
    {{- end }}
  {{- if $push.tls.existingSecret }}
  authenticationRef: {name: {{ include "taskflux.named" (list $root "scaler") }}}
  {{- end }}
{{- end -}}

{{/* Tasks a second that a handler's provider takes from all pods together; "" where nothing limits them: (list $ handler). */}}
{{- define "taskflux.rate" -}}
{{- $handler := last . -}}
{{- $provider := get (dict "process-email" "smtp" "process-sms" "msg91") $handler.target -}}
{{- if $handler.scaling.rate -}}
{{- include "taskflux.scalar" $handler.scaling.rate -}}
{{- else if and $provider (first .).Values.secrets.redis.existingSecret -}}
{{- /* Without Redis, each process has that rate for itself, and more pods send more. */ -}}
{{- with get $handler.settings $provider -}}{{- with .rate -}}{{- include "taskflux.scalar" . -}}{{- end -}}{{- end -}}
{{- end -}}
{{- end -}}

{{/* (list $ handler threshold) */}}
{{- define "taskflux.lagTrigger" -}}
{{- $root := first . -}}
{{- $handler := index . 1 -}}
{{- $kafka := $handler.settings.kafka }}
- type: kafka
  name: lag
  metricType: AverageValue
  metadata:
    bootstrapServers: {{ $kafka.bootstrapServers }}
    version: {{ $root.Values.keda.kafkaVersion | quote }}
    topic: {{ $handler.topic }}
    consumerGroup: {{ $handler.group }}
    lagThreshold: {{ include "taskflux.scalar" (last .) | quote }}
    activationLagThreshold: "0"
    offsetResetPolicy: earliest
    allowIdleConsumers: "false"
    scaleToZeroOnInvalidOffset: "false"
    excludePersistentLag: "false"
    limitToPartitionsWithLag: "false"
    ensureEvenDistributionOfPartitions: "true"
    sasl: {{ get (dict "PLAIN" "plaintext" "SCRAM-SHA-256" "scram_sha256" "SCRAM-SHA-512" "scram_sha512") (ternary $kafka.saslMechanism "" (hasPrefix "SASL" $kafka.securityProtocol)) | default "none" }}
    tls: {{ ternary "enable" "disable" (hasSuffix "SSL" $kafka.securityProtocol) }}
  {{- if include "taskflux.kafkaAuthentication" $root }}
  authenticationRef: {name: {{ include "taskflux.named" (list $root "kafka") }}}
  {{- end }}
{{- end -}}

{{/* (list $ name threshold query) */}}
{{- define "taskflux.countTrigger" }}
- type: postgresql
  name: {{ index . 1 }}
  metricType: AverageValue
  metadata:
    query: {{ index . 3 | quote }}
    targetQueryValue: {{ include "taskflux.scalar" (index . 2) | quote }}
    activationTargetQueryValue: "0"
  authenticationRef: {name: {{ include "taskflux.named" (list (first .) "postgres") }}}
{{- end -}}

{{/* Requests a second of a handler's pods, as PromQL; "" where nobody counts them. */}}
{{- define "taskflux.requestQuery" -}}
{{- $handler := last . -}}
{{- $counters := dict "ingest" "taskflux_submitted_total" "notify" "taskflux_notifications_total" -}}
{{- $counter := get $counters $handler.target -}}
{{- if $handler.scaling.requestQuery -}}
{{- $handler.scaling.requestQuery -}}
{{- else if $counter -}}
sum(rate({{ $counter }}{namespace="{{ (first .).Release.Namespace }}",pod=~"{{ $handler.fullname }}-.+"}[2m]))
{{- end -}}
{{- end -}}

{{/* How fast pods come and go: at once to as many as are needed, since each step is a rebalance; back after a time of calm. */}}
{{- define "taskflux.behavior" -}}
behavior:
  scaleUp:
    stabilizationWindowSeconds: 0
    policies:
      - {type: Pods, value: {{ int .maxReplicas }}, periodSeconds: 15}
  scaleDown:
    stabilizationWindowSeconds: {{ .scaleDownStabilizationSeconds }}
    policies:
      - {type: Percent, value: 100, periodSeconds: 15}
{{- end -}}
