{{/* The CA of a server, as JSON: `secret` and `key`, or neither: (list $ server). */}}
{{- define "taskflux.ca" -}}
{{- $secret := get (first .).Values.secrets (last .) -}}
{{- $name := $secret.caSecret | default $secret.existingSecret -}}
{{- $key := $secret.caKey | default (ternary "ca.crt" "" (not (empty $secret.caSecret))) -}}
{{- ternary (dict "secret" $name "key" $key) dict (and (not (empty $name)) (not (empty $key))) | toJson -}}
{{- end -}}

{{/* What leads to the mounted files: (list $ handler). */}}
{{- define "taskflux.secretEnv" -}}
{{- $root := first . -}}
{{- $secrets := $root.Values.secrets -}}
{{- $handler := last . -}}
{{- if include "taskflux.mounted" . | fromJson }}
- {name: TASKFLUX_SECRETS_DIR, value: /etc/taskflux}
{{- end }}
{{- if has "postgres" $handler.secrets }}
{{- with $secrets.postgres.sslMode }}
- {name: PGSSLMODE, value: {{ . }}}
{{- end }}
{{- if include "taskflux.ca" (list $root "postgres") | fromJson }}
- {name: PGSSLROOTCERT, value: /etc/taskflux/postgres/ca.crt}
{{- end }}
{{- end }}
{{- if has "kafka" $handler.secrets }}
{{- if include "taskflux.ca" (list $root "kafka") | fromJson }}
- {name: TASKFLUX_KAFKA__TLS_CA_FILE, value: /etc/taskflux/kafka/ca.crt}
{{- end }}
{{- if $secrets.kafka.certKey }}
- {name: TASKFLUX_KAFKA__TLS_CERT_FILE, value: /etc/taskflux/kafka/tls.crt}
- {name: TASKFLUX_KAFKA__TLS_KEY_FILE, value: /etc/taskflux/kafka/tls.key}
{{- end }}
{{- end }}
{{- if and (has "redis" $handler.secrets) (include "taskflux.ca" (list $root "redis") | fromJson) }}
- {name: TASKFLUX_REDIS__CA_FILE, value: /etc/taskflux/redis/ca.crt}
{{- end }}
{{- if has "smtp" $handler.secrets }}
{{- if and $secrets.smtp.existingSecret $secrets.smtp.accessTokenKey }}
- {name: TASKFLUX_SMTP__ACCESS_TOKEN_FILE, value: /etc/taskflux/smtp/token}
{{- end }}
{{- if include "taskflux.ca" (list $root "smtp") | fromJson }}
- {name: TASKFLUX_SMTP__CA_FILE, value: /etc/taskflux/smtp/ca.crt}
{{- end }}
{{- end }}
{{- end -}}

{{/*
The files in a server's own Secret that a handler reads, as JSON: path → key. Those that are called like a variable set it, and are read again when the
Secret changes: (list $ handler server).
*/}}
{{- define "taskflux.secretFiles" -}}
{{- $handler := index . 1 -}}
{{- $server := last . -}}
{{- $secret := get (first .).Values.secrets $server -}}
{{- $keys := dict "tls.crt" $secret.certKey "tls.key" $secret.keyKey "token" $secret.accessTokenKey -}}
{{- if eq $server "postgres" -}}
{{- $_ := set $keys "TASKFLUX_POSTGRES__DSN" $secret.dsnKey -}}
{{- if $handler.migrates -}}{{- $_ := set $keys "TASKFLUX_POSTGRES__MIGRATE_DSN" $secret.migrateDsnKey -}}{{- end -}}
{{- else if eq $server "kafka" -}}
{{- $_ := set $keys "TASKFLUX_KAFKA__SASL_USERNAME" $secret.usernameKey -}}
{{- $_ := set $keys "TASKFLUX_KAFKA__SASL_PASSWORD" $secret.passwordKey -}}
{{- else if eq $server "redis" -}}
{{- $_ := set $keys "TASKFLUX_REDIS__URL" $secret.urlKey -}}
{{- else if eq $server "smtp" -}}
{{- $_ := set $keys "TASKFLUX_SMTP__USERNAME" $secret.usernameKey -}}
{{- if not $secret.accessTokenKey -}}{{- $_ := set $keys "TASKFLUX_SMTP__PASSWORD" $secret.passwordKey -}}{{- end -}}
{{- else if eq $server "msg91" -}}
{{- if eq $handler.target "ingest" -}}
{{- $_ := set $keys "TASKFLUX_MSG91__WEBHOOK_SECRET" $secret.webhookSecretKey -}}
{{- else -}}
{{- $_ := set $keys "TASKFLUX_MSG91__AUTH_KEY" $secret.authKeyKey -}}
{{- end -}}
{{- else if eq $server "otel" -}}
{{- $_ := set $keys "TASKFLUX_OTEL__HEADERS" $secret.headersKey -}}
{{- else if eq $server "auth" -}}
{{- $_ := set $keys "TASKFLUX_AUTH__BOOTSTRAP_KEY" $secret.bootstrapKeyKey -}}
{{- else if eq $server "notify" -}}
{{- $_ := set $keys "TASKFLUX_NOTIFY__KEY" $secret.apiKeyKey -}}
{{- end -}}
{{- $found := dict -}}
{{- range $path, $key := $keys -}}{{- if $key -}}{{- $_ := set $found $path $key -}}{{- end -}}{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/*
Files that are mounted, as JSON: name → a list of `secret` and `items`, one of each Secret: (list $ handler). Only the keys that are read are
mounted: the Secret of a CA may hold its private key, too.
*/}}
{{- define "taskflux.mounted" -}}
{{- $root := first . -}}
{{- $handler := last . -}}
{{- $found := dict -}}
{{- $servers := $handler.secrets -}}
{{- if $handler.settings.otel.endpoint -}}{{- $servers = append $servers "otel" -}}{{- end -}}
{{- if has $handler.target (list "ingest" "notify") -}}{{- $servers = append $servers "auth" -}}{{- end -}}
{{- if or (eq $handler.target "notify") (and $handler.settings.notify.url $handler.taskType) -}}{{- $servers = append $servers "notify" -}}{{- end -}}
{{- range $name := $servers -}}
{{- $own := (get $root.Values.secrets $name).existingSecret -}}
{{- $items := list -}}
{{- range $path, $key := include "taskflux.secretFiles" (list $root $handler $name) | fromJson -}}
{{- $items = append $items (dict "key" $key "path" $path) -}}
{{- end -}}
{{- $sources := list -}}
{{- $ca := include "taskflux.ca" (list $root $name) | fromJson -}}
{{- if $ca -}}
{{- $authority := dict "key" $ca.key "path" "ca.crt" -}}
{{- if eq $ca.secret $own -}}
{{- $items = prepend $items $authority -}}
{{- else -}}
{{- $sources = append $sources (dict "secret" $ca.secret "items" (list $authority)) -}}
{{- end -}}
{{- end -}}
{{- if and $items $own -}}{{- $sources = append $sources (dict "secret" $own "items" $items) -}}{{- end -}}
{{- if $sources -}}{{- $_ := set $found $name $sources -}}{{- end -}}
{{- end -}}
{{- $push := $root.Values.keda.pushScaler.tls -}}
{{- if and $push.existingSecret (eq $handler.name (dig "name" "" (include "taskflux.scalerRelay" $root | fromJson))) -}}
{{- $items := list (dict "key" $push.certKey "path" "tls.crt") (dict "key" $push.keyKey "path" "tls.key") -}}
{{- with $push.clientCaKey -}}{{- $items = append $items (dict "key" . "path" "client-ca.crt") -}}{{- end -}}
{{- $_ := set $found "scaler" (list (dict "secret" $push.existingSecret "items" $items)) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
