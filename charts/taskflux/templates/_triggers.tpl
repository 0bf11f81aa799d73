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
{{- if and $handler.topic $scaling.lagThreshold }}
{{- include "taskflux.lagTrigger" . }}
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

{{- define "taskflux.lagTrigger" -}}
{{- $root := first . -}}
{{- $handler := last . -}}
{{- $kafka := $handler.settings.kafka }}
- type: kafka
  name: lag
  metricType: AverageValue
  metadata:
    bootstrapServers: {{ $kafka.bootstrapServers }}
    version: {{ $root.Values.keda.kafkaVersion | quote }}
    topic: {{ $handler.topic }}
    consumerGroup: {{ $handler.group }}
    lagThreshold: {{ include "taskflux.scalar" $handler.scaling.lagThreshold | quote }}
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
