{{/* A value as a variable: 33554432 and not 3.3554432e+07. */}}
{{- define "taskflux.scalar" -}}
{{- if kindIs "string" . -}}{{- . -}}{{- else -}}{{- toJson . -}}{{- end -}}
{{- end -}}

{{/* Settings as variables, YAML name → value: null or empty ones keep the program's default. */}}
{{- define "taskflux.variables" -}}
{{- range $section, $settings := . -}}
{{- range $name, $value := $settings -}}
{{- if and (ne (kindOf $value) "invalid") (ne (toString $value) "") }}
TASKFLUX_{{ $section | upper }}__{{ $name | snakecase | upper }}: {{ include "taskflux.scalar" $value | quote }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether calls of the API need a key. It is always in the ConfigMap: an upgrade learns there what the release before knew. */}}
{{- define "taskflux.authMode" -}}
{{- .Values.settings.auth.mode | default "required" -}}
{{- end -}}

{{/* The data of the ConfigMap, which all containers read. A provider's settings are only for handlers that get its credentials. */}}
{{- define "taskflux.configuration" -}}
{{- $settings := omit .Values.settings "smtp" "msg91" -}}
{{- $_ := set $settings "auth" (merge (dict "mode" (include "taskflux.authMode" .)) .Values.settings.auth) -}}
{{- include "taskflux.variables" $settings | trim -}}
{{- end -}}

{{/*
The environment of a container, without the ConfigMap: (list $ handler [more]). Of entries with the same name, the last one
counts, since the API server accepts a name only once. Each takes precedence over the ConfigMap.
*/}}
{{- define "taskflux.env" -}}
{{- $entries := include "taskflux.allEnv" . | fromYamlArray -}}
{{- $last := dict -}}
{{- range $place, $entry := $entries -}}{{- $_ := set $last $entry.name (toString $place) -}}{{- end -}}
{{- range $place, $entry := $entries -}}
{{- if eq (get $last $entry.name) (toString $place) }}
- {{ toYaml $entry | nindent 2 | trim }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "taskflux.allEnv" -}}
{{- $root := first . -}}
{{- $handler := index . 1 -}}
{{- $settings := omit $handler.ownSettings "smtp" "msg91" -}}
{{- range $provider := list "smtp" "msg91" -}}
{{- if has $provider $handler.secrets -}}{{- $_ := set $settings $provider (get $handler.settings $provider) -}}{{- end -}}
{{- end -}}
{{- $variables := include "taskflux.variables" $settings | fromYaml -}}
{{- $_ := set $variables "TASKFLUX_HTTP__PORT" (include "taskflux.scalar" $handler.port) -}}
{{- if $handler.apart -}}
{{- $_ := set $variables "TASKFLUX_HTTP__MANAGEMENT_PORT" (include "taskflux.scalar" $handler.managementPort) -}}
{{- end -}}
{{- $_ := set $variables "TASKFLUX_POSTGRES__POOL_SIZE" (include "taskflux.scalar" $handler.poolSize) -}}
{{- $_ := set $variables "TASKFLUX_WORKER__DRAIN_SECONDS" (include "taskflux.scalar" $handler.drainSeconds) -}}
{{- $_ := set $variables "TASKFLUX_WORKER__IMAGE" $handler.image.reference -}}
{{- if eq $handler.name (dig "name" "" (include "taskflux.scalerRelay" $root | fromJson)) -}}
{{- $push := $root.Values.keda.pushScaler -}}
{{- $_ := set $variables "TASKFLUX_SCALER__PORT" (include "taskflux.scalar" $push.port) -}}
{{- if $push.tls.existingSecret -}}
{{- $_ := set $variables "TASKFLUX_SCALER__TLS_CERT_FILE" "/etc/taskflux/scaler/tls.crt" -}}
{{- $_ := set $variables "TASKFLUX_SCALER__TLS_KEY_FILE" "/etc/taskflux/scaler/tls.key" -}}
{{- if $push.tls.clientCaKey -}}{{- $_ := set $variables "TASKFLUX_SCALER__TLS_CLIENT_CA_FILE" "/etc/taskflux/scaler/client-ca.crt" -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if $handler.service.enabled -}}
{{- $_ := set $variables "TASKFLUX_HTTP__LINGER_SECONDS" (include "taskflux.scalar" $handler.lingerSeconds) -}}
{{- end -}}
{{- if and (not (has "kafka" $handler.secrets)) (hasPrefix "SASL" $handler.settings.kafka.securityProtocol) -}}
{{- /* It does not use Kafka, and SASL without credentials would be refused. */ -}}
{{- $_ := set $variables "TASKFLUX_KAFKA__SECURITY_PROTOCOL" "PLAINTEXT" -}}
{{- if $handler.settings.kafka.saslUsername -}}{{- $_ := set $variables "TASKFLUX_KAFKA__SASL_USERNAME" "" -}}{{- end -}}
{{- end -}}
{{- range $name, $value := $variables }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- include "taskflux.secretEnv" (list $root $handler) }}
{{- range slice . 2 }}
{{ toYaml . }}
{{- end }}
{{- with $handler.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
