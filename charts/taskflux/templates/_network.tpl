{{/* The port in an address such as https://host:8443/path, or what its scheme says: (list address other). */}}
{{- define "taskflux.port" -}}
{{- $address := first . -}}
{{- $host := regexReplaceAll "^[a-z]+://([^/]*).*$" $address "${1}" -}}
{{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" -}}
{{- $port | default (ternary "443" (ternary "80" (last . | toString) (hasPrefix "http:" $address)) (hasPrefix "https:" $address)) -}}
{{- end -}}

{{/* One egress rule over TCP: (list to ports). */}}
{{- define "taskflux.egressRule" }}
- ports:
    {{- range last . | uniq }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with first . }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "taskflux.dnsEgress" -}}
{{- with .Values.networkPolicy.dns }}
- ports:
    - {port: {{ .port }}, protocol: UDP}
    - {port: {{ .port }}, protocol: TCP}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* What a handler has to reach: DNS, the servers in its `secrets`, its provider, the receiver of traces: (list $ handler). */}}
{{- define "taskflux.egress" -}}
{{- $root := first . -}}
{{- $handler := last . -}}
{{- $policy := $root.Values.networkPolicy -}}
{{- $settings := $handler.settings -}}
{{- include "taskflux.dnsEgress" $root }}
{{- if has "postgres" $handler.secrets }}
{{- include "taskflux.egressRule" (list $policy.postgres.to (list $policy.postgres.port)) }}
{{- end }}
{{- if has "kafka" $handler.secrets }}
{{- $ports := list }}
{{- if $policy.kafka.port }}
{{- $ports = list $policy.kafka.port }}
{{- else }}
{{- range splitList "," $settings.kafka.bootstrapServers }}{{ $ports = append $ports (include "taskflux.port" (list (trim .) 9092)) }}{{ end }}
{{- end }}
{{- include "taskflux.egressRule" (list $policy.kafka.to $ports) }}
{{- end }}
{{- if and (has "redis" $handler.secrets) $root.Values.secrets.redis.existingSecret }}
{{- include "taskflux.egressRule" (list $policy.redis.to (list $policy.redis.port)) }}
{{- end }}
{{- if and (has "smtp" $handler.secrets) $settings.smtp.host }}
{{- $usual := get (dict "implicit" 465 "none" 25) ($settings.smtp.tls | default "starttls") | default 587 }}
{{- include "taskflux.egressRule" (list $policy.smtp.to (list ($settings.smtp.port | default $usual))) }}
{{- end }}
{{- if and (has "msg91" $handler.secrets) (ne $handler.target "ingest") $root.Values.secrets.msg91.existingSecret }}
{{- $port := include "taskflux.port" (list ($settings.msg91.baseUrl | default "https://control.msg91.com") 443) }}
{{- include "taskflux.egressRule" (list $policy.msg91.to (list $port)) }}
{{- end }}
{{- with $settings.otel.endpoint }}
{{- include "taskflux.egressRule" (list $policy.otel.to (list (include "taskflux.port" (list . 4318)))) }}
{{- end }}
{{- if and $settings.notify.url $handler.taskType }}
{{- /* The release's own notify, wherever the address leads: a Service's port is not the pods'. Without one, the port of the address. */}}
{{- $elsewhere := true }}
{{- range $name, $other := include "taskflux.handlers" $root | fromJson }}
{{- if eq $other.target "notify" }}
{{- $elsewhere = false }}
- ports:
    - {port: {{ $other.port }}, protocol: TCP}
  to:
    - podSelector:
        matchLabels:
          {{- include "taskflux.selector" (list $root $name) | nindent 10 }}
{{- end }}
{{- end }}
{{- if $elsewhere }}
{{- include "taskflux.egressRule" (list nil (list (include "taskflux.port" (list $settings.notify.url 443)))) }}
{{- end }}
{{- end }}
{{- with $handler.egress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
