{{/*
What `helm test` can try, as JSON: `api`, the handler that accepts tasks over HTTP behind a Service, its `port` and its `url`. Empty
if this handler or the one of simulated tasks is not deployed. `key` is the Secret with the key of the API that it sends, as `secret` and
`key`.
*/}}
{{- define "taskflux.tested" -}}
{{- $found := dict -}}
{{- $simulated := false -}}
{{- range $name, $handler := include "taskflux.handlers" $ | fromJson -}}
{{- if and (eq $handler.target "ingest") $handler.service.enabled (not $found.api) -}}
{{- $_ := set $found "api" $name -}}
{{- $_ := set $found "port" $handler.port -}}
{{- $_ := set $found "url" (printf "http://%s.%s.svc:%d" $handler.fullname $.Release.Namespace (int $handler.service.port)) -}}
{{- end -}}
{{- if eq $handler.taskType "simulated" -}}{{- $simulated = true -}}{{- end -}}
{{- end -}}
{{- $key := dict -}}
{{- with $.Values.secrets.auth -}}
{{- if .testSecret -}}{{- $key = dict "secret" .testSecret "key" .testKeyKey -}}
{{- else if .existingSecret -}}{{- $key = dict "secret" .existingSecret "key" .bootstrapKeyKey -}}
{{- end -}}
{{- end -}}
{{- $_ := set $found "key" $key -}}
{{- if and $.Values.tests.enabled $found.api $simulated -}}{{- toJson $found -}}{{- else -}}{}{{- end -}}
{{- end -}}
