{{/*
What may keep KEDA from asking the servers although the pods can, as paragraphs of the notes: one trigger that it cannot ask stops the others
of its ScaledObject, too, and a handler at zero stays there.
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

NOTE: KEDA asks {{ join "," $short }} for lag from its own namespace, where that name may lead nowhere, and handlers would not wake. Name the
namespace as well (kafka.{{ .Release.Namespace }}:9092), in settings.kafka.bootstrapServers and in PostgreSQL's DSN.
{{- end }}
{{- if and $counts .Values.settings.postgres.pooler (not .Values.secrets.postgres.kedaDsnKey) }}

NOTE: KEDA counts tasks through the pooler, with prepared statements, which PgBouncer in transaction mode keeps only where
max_prepared_statements is set. Give KEDA a DSN past the pooler, or one with default_query_exec_mode=simple_protocol:
secrets.postgres.kedaDsnKey.
{{- end }}
{{- if and $counts .Values.secrets.postgres.caKey (not .Values.secrets.postgres.kedaDsnKey) }}

NOTE: KEDA does not read secrets.postgres.caKey. Where PostgreSQL's DSN says sslmode=verify-full or verify-ca, KEDA cannot connect: give it
one with sslmode=require, as secrets.postgres.kedaDsnKey.
{{- end }}
{{- end -}}
