{{/*
Reasons why KEDA may be unable to query servers that the pods can reach, as paragraphs of the notes. One failing trigger stops
the others of its ScaledObject, too, and a handler at zero stays there.
*/}}
{{- define "taskflux.remarks.keda" -}}
{{- $lag := false -}}
{{- $counts := false -}}
{{- range $name, $handler := include "taskflux.handlers" . | fromJson -}}
{{- if eq $handler.scaler "keda" -}}
{{- range include "taskflux.triggers" (list $ $handler) | fromYamlArray -}}
{{- if eq .type "kafka" }}{{ $lag = true }}{{ end -}}
{{- if eq .type "postgresql" }}{{ $counts = true }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $short := list -}}
{{- range splitList "," .Values.settings.kafka.bootstrapServers -}}
{{- if not (regexMatch "[.\\[]" .) -}}{{- $short = append $short (trim .) -}}{{- end -}}
{{- end -}}
{{- if and $lag $short }}

NOTE: KEDA reads the lag of {{ join "," $short }} from its own namespace, where that name may not resolve, and handlers would not wake. Add
the namespace (kafka.{{ .Release.Namespace }}:9092), in settings.kafka.bootstrapServers and in PostgreSQL's DSN.
{{- end }}
{{- if and $counts .Values.settings.postgres.pooler (not .Values.secrets.postgres.kedaDsnKey) }}

NOTE: KEDA counts tasks through the pooler, with prepared statements, which PgBouncer in transaction mode supports only if
max_prepared_statements is set. Give KEDA a DSN that bypasses the pooler, or one with default_query_exec_mode=simple_protocol:
secrets.postgres.kedaDsnKey.
{{- end }}
{{- if and $counts (include "taskflux.ca" (list . "postgres") | fromJson) (not .Values.secrets.postgres.kedaDsnKey) (not .Values.secrets.postgres.sslMode) }}

NOTE: KEDA does not read PostgreSQL's CA. If PostgreSQL's DSN says sslmode=verify-full or verify-ca, KEDA cannot connect: give it
a DSN with sslmode=require, as secrets.postgres.kedaDsnKey.
{{- end }}
{{- end -}}

{{/* What works now and surprises later, as paragraphs of the notes. */}}
{{- define "taskflux.remarks.operation" -}}
{{- $handlers := include "taskflux.handlers" . | fromJson -}}
{{- $relays := false -}}
{{- $long := list -}}
{{- $open := list -}}
{{- range $name, $handler := $handlers -}}
{{- if eq $handler.target "relay" }}{{ $relays = true }}{{ end -}}
{{- if gt (int $handler.grace) 600 }}{{ $long = append $long (printf "%s (%d s)" $name (int $handler.grace)) }}{{ end -}}
{{- if and $handler.service.enabled (ne $handler.service.type "ClusterIP") }}{{ $open = append $open (printf "the Service of %s" $name) }}{{ end -}}
{{- end -}}
{{- if .Values.ingress.enabled }}{{ $open = append $open "the Ingress" }}{{ end -}}
{{- if (.Values.httpRoute | default dict).enabled }}{{ $open = append $open "the HTTPRoute" }}{{ end -}}
{{- if not .Values.networkPolicy.enabled }}{{ $open = append $open "every pod of the cluster" }}{{ end -}}
{{- if not $relays }}

WARNING: no relay is deployed. Unless another release runs one on this database, nothing publishes delayed tasks and retries, and nothing
recovers the tasks of lost pods. Set handlers.relay.enabled.
{{- end }}
{{- if and $open (ne (include "taskflux.authMode" .) "required") }}

WARNING: the API asks for no key (settings.auth.mode is {{ include "taskflux.authMode" . }}), and is open to whoever reaches {{ join ", " $open }}.
{{- end }}
{{- if not .Values.settings.kafka.topicPrefix }}

NOTE: settings.kafka.topicPrefix is empty. A second release on the same Kafka would take this one's tasks: give it a prefix, and a database
of its own.
{{- end }}
{{- if .Values.monitoring.dashboards.enabled }}

NOTE: the dashboards have fixed uids. Where two releases share a Grafana, enable monitoring.dashboards in one of them: it shows both.
{{- end }}
{{- if $long }}

NOTE: the cluster autoscaler kills pods of a node that it removes after 600 s (--max-graceful-termination-sec), which is less than a drain
of {{ join ", " $long }}. Raise that, or set the pod annotation cluster-autoscaler.kubernetes.io/safe-to-evict: "false".
{{- end }}
{{- end -}}
