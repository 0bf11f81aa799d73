{{/* A variable from a Secret: (list name secret key). Empty if there is no Secret or no key. */}}
{{- define "taskflux.fromSecret" -}}
{{- if and (index . 1) (index . 2) }}
- name: {{ first . }}
  valueFrom:
    secretKeyRef: {name: {{ index . 1 }}, key: {{ index . 2 }}}
{{- end }}
{{- end -}}

{{/* Credentials as variables: (list $ handler). */}}
{{- define "taskflux.secretEnv" -}}
{{- $secrets := (first .).Values.secrets -}}
{{- $handler := last . -}}
{{- if has "postgres" $handler.secrets }}
{{- with $secrets.postgres }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_POSTGRES__DSN" .existingSecret .dsnKey) }}
{{- if $handler.migrates }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_POSTGRES__MIGRATE_DSN" .existingSecret .migrateDsnKey) }}
{{- end }}
{{- if .caKey }}
- {name: PGSSLROOTCERT, value: /etc/taskflux/postgres/ca.crt}
{{- end }}
{{- end }}
{{- end }}
{{- if has "kafka" $handler.secrets }}
{{- with $secrets.kafka }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_KAFKA__SASL_USERNAME" .existingSecret .usernameKey) }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_KAFKA__SASL_PASSWORD" .existingSecret .passwordKey) }}
{{- if .caKey }}
- {name: TASKFLUX_KAFKA__TLS_CA_FILE, value: /etc/taskflux/kafka/ca.crt}
{{- end }}
{{- if .certKey }}
- {name: TASKFLUX_KAFKA__TLS_CERT_FILE, value: /etc/taskflux/kafka/tls.crt}
- {name: TASKFLUX_KAFKA__TLS_KEY_FILE, value: /etc/taskflux/kafka/tls.key}
{{- end }}
{{- end }}
{{- end }}
{{- if has "redis" $handler.secrets }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_REDIS__URL" $secrets.redis.existingSecret $secrets.redis.urlKey) }}
{{- end }}
{{- if has "smtp" $handler.secrets }}
{{- with $secrets.smtp }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_SMTP__USERNAME" .existingSecret .usernameKey) }}
{{- if and .existingSecret .accessTokenKey }}
- {name: TASKFLUX_SMTP__ACCESS_TOKEN_FILE, value: /etc/taskflux/smtp/token}
{{- else }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_SMTP__PASSWORD" .existingSecret .passwordKey) }}
{{- end }}
{{- if and .existingSecret .caKey }}
- {name: TASKFLUX_SMTP__CA_FILE, value: /etc/taskflux/smtp/ca.crt}
{{- end }}
{{- end }}
{{- end }}
{{- if has "msg91" $handler.secrets }}
{{- with $secrets.msg91 }}
{{- if eq $handler.target "ingest" }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_MSG91__WEBHOOK_SECRET" .existingSecret .webhookSecretKey) }}
{{- else }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_MSG91__AUTH_KEY" .existingSecret .authKeyKey) }}
{{- end }}
{{- end }}
{{- end }}
{{- if $handler.settings.otel.endpoint }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_OTEL__HEADERS" $secrets.otel.existingSecret $secrets.otel.headersKey) }}
{{- end }}
{{- end -}}

{{/* Certificates that are mounted, as JSON: name → secret and items: (list $ handler). */}}
{{- define "taskflux.certificates" -}}
{{- $secrets := (first .).Values.secrets -}}
{{- $handler := last . -}}
{{- $found := dict -}}
{{- $files := dict "caKey" "ca.crt" "certKey" "tls.crt" "keyKey" "tls.key" "accessTokenKey" "token" -}}
{{- range $name := list "postgres" "kafka" "smtp" -}}
{{- $secret := get $secrets $name -}}
{{- $items := list -}}
{{- range $key, $file := $files -}}
{{- with get $secret $key -}}{{- $items = append $items (dict "key" . "path" $file) -}}{{- end -}}
{{- end -}}
{{- if and $items $secret.existingSecret (has $name $handler.secrets) -}}
{{- $_ := set $found $name (dict "secret" $secret.existingSecret "items" $items) -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
