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
