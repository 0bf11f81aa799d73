{{/* A variable from a Secret: (list name secret key). Empty if there is no Secret or no key. */}}
{{- define "taskflux.fromSecret" -}}
{{- if and (index . 1) (index . 2) }}
- name: {{ first . }}
  valueFrom:
    secretKeyRef: {name: {{ index . 1 }}, key: {{ index . 2 }}}
{{- end }}
{{- end -}}

{{/* The CA of a server, as JSON: `secret` and `key`, or neither: (list $ server). */}}
{{- define "taskflux.ca" -}}
{{- $secret := get (first .).Values.secrets (last .) -}}
{{- $name := $secret.caSecret | default $secret.existingSecret -}}
{{- $key := $secret.caKey | default (ternary "ca.crt" "" (not (empty $secret.caSecret))) -}}
{{- ternary (dict "secret" $name "key" $key) dict (and (not (empty $name)) (not (empty $key))) | toJson -}}
{{- end -}}

{{/* Credentials as variables: (list $ handler). */}}
{{- define "taskflux.secretEnv" -}}
{{- $root := first . -}}
{{- $secrets := $root.Values.secrets -}}
{{- $handler := last . -}}
{{- if has "postgres" $handler.secrets }}
{{- with $secrets.postgres }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_POSTGRES__DSN" .existingSecret .dsnKey) }}
{{- if $handler.migrates }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_POSTGRES__MIGRATE_DSN" .existingSecret .migrateDsnKey) }}
{{- end }}
{{- with .sslMode }}
- {name: PGSSLMODE, value: {{ . }}}
{{- end }}
{{- if include "taskflux.ca" (list $root "postgres") | fromJson }}
- {name: PGSSLROOTCERT, value: /etc/taskflux/postgres/ca.crt}
{{- end }}
{{- end }}
{{- end }}
{{- if has "kafka" $handler.secrets }}
{{- with $secrets.kafka }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_KAFKA__SASL_USERNAME" .existingSecret .usernameKey) }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_KAFKA__SASL_PASSWORD" .existingSecret .passwordKey) }}
{{- if include "taskflux.ca" (list $root "kafka") | fromJson }}
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
{{- if include "taskflux.ca" (list $root "redis") | fromJson }}
- {name: TASKFLUX_REDIS__CA_FILE, value: /etc/taskflux/redis/ca.crt}
{{- end }}
{{- end }}
{{- if has "smtp" $handler.secrets }}
{{- with $secrets.smtp }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_SMTP__USERNAME" .existingSecret .usernameKey) }}
{{- if and .existingSecret .accessTokenKey }}
- {name: TASKFLUX_SMTP__ACCESS_TOKEN_FILE, value: /etc/taskflux/smtp/token}
{{- else }}
{{- include "taskflux.fromSecret" (list "TASKFLUX_SMTP__PASSWORD" .existingSecret .passwordKey) }}
{{- end }}
{{- if include "taskflux.ca" (list $root "smtp") | fromJson }}
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

{{/*
Files that are mounted, as JSON: name → a list of `secret` and `items`, one of each Secret: (list $ handler). Only the keys that are read are
mounted: the Secret of a CA may hold its private key, too.
*/}}
{{- define "taskflux.certificates" -}}
{{- $root := first . -}}
{{- $handler := last . -}}
{{- $found := dict -}}
{{- $files := dict "certKey" "tls.crt" "keyKey" "tls.key" "accessTokenKey" "token" -}}
{{- range $name := list "postgres" "kafka" "redis" "smtp" -}}
{{- $secret := get $root.Values.secrets $name -}}
{{- $items := list -}}
{{- range $key, $file := $files -}}
{{- with get $secret $key -}}{{- $items = append $items (dict "key" . "path" $file) -}}{{- end -}}
{{- end -}}
{{- $sources := list -}}
{{- $ca := include "taskflux.ca" (list $root $name) | fromJson -}}
{{- $own := $secret.existingSecret -}}
{{- if $ca -}}
{{- $authority := dict "key" $ca.key "path" "ca.crt" -}}
{{- if eq $ca.secret $own -}}
{{- $items = prepend $items $authority -}}
{{- else -}}
{{- $sources = append $sources (dict "secret" $ca.secret "items" (list $authority)) -}}
{{- end -}}
{{- end -}}
{{- if and $items $own -}}{{- $sources = append $sources (dict "secret" $own "items" $items) -}}{{- end -}}
{{- if and $sources (has $name $handler.secrets) -}}{{- $_ := set $found $name $sources -}}{{- end -}}
{{- end -}}
{{- $push := $root.Values.keda.pushScaler.tls -}}
{{- if and $push.existingSecret (eq $handler.name (dig "name" "" (include "taskflux.scalerRelay" $root | fromJson))) -}}
{{- $items := list (dict "key" $push.certKey "path" "tls.crt") (dict "key" $push.keyKey "path" "tls.key") -}}
{{- with $push.clientCaKey -}}{{- $items = append $items (dict "key" . "path" "client-ca.crt") -}}{{- end -}}
{{- $_ := set $found "scaler" (list (dict "secret" $push.existingSecret "items" $items)) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
