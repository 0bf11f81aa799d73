{{/*
The connections that pods, Jobs and KEDA may open to PostgreSQL, compared with `postgresMaxConnections`. With a pooler, the pooler's own
limit counts.
*/}}
{{- define "taskflux.connections" -}}
{{- /* During a rollout, a pod that drains keeps its connections, and its successor does not wait for it. */ -}}
{{- $sum := 0 -}}
{{- $rollout := 0 -}}
{{- $triggers := 0 -}}
{{- range $name, $handler := include "taskflux.handlers" $ | fromJson -}}
{{- $most := mul $handler.most $handler.poolSize -}}
{{- $sum = add $sum $most -}}
{{- $rollout = add $rollout (ternary 0 $most (eq ($handler.strategy.type | default "RollingUpdate") "Recreate")) }}
  {{ printf "%-20s %3d pods × %-3d = %4d" $name (int $handler.most) (int $handler.poolSize) (int $most) }}
{{- if eq $handler.scaler "keda" -}}
{{- range include "taskflux.triggers" (list $ $handler) | fromYamlArray -}}
{{- if eq .type "postgresql" -}}{{- $triggers = add1 $triggers -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
{{- if $triggers }}
  {{ printf "%-20s                  %4d" "KEDA's counts" $triggers }}
{{- $sum = add $sum $triggers -}}
{{- end }}
{{- if or .Values.setup.enabled .Values.prune.enabled }}
  {{ printf "%-20s                  %4d" "Jobs" 2 }}
{{- $sum = add $sum 2 -}}
{{- end }}
  {{ printf "%-20s                  %4d" "together" $sum }}, of max_connections = {{ int .Values.postgresMaxConnections }}
  {{ printf "%-20s                  %4d" "in a rollout" (add $sum $rollout) }}, while old pods drain next to their successors
{{- /* PostgreSQL keeps three for superusers. */}}
{{- $free := sub .Values.postgresMaxConnections 3 | int }}
{{- if .Values.settings.postgres.pooler }}
  settings.postgres.pooler is true: your pooler's limit for clients (max_client_conn) must allow this many.
{{- else if gt (int $sum) $free }}

WARNING: {{ $sum }} connections are more than the {{ $free }} that max_connections leaves. At full load pods would be refused and wait. Raise
max_connections (and postgresMaxConnections with it), lower scaling.maxReplicas or poolSize, or use PgBouncer and set
settings.postgres.pooler.
{{- else if gt (int (add $sum $rollout)) $free }}

NOTE: a rollout at full load may need more than the {{ $free }} connections that max_connections leaves; new pods would wait for old ones.
{{- end }}
{{- end -}}
