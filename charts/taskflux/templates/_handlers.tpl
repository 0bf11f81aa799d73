{{/*
Every handler that is deployed, as JSON, after all values have been checked: name → the values of `handlers.<name>` merged into `handlerDefaults`, and
what follows from them:

  name, fullname, target    of its objects; what `taskflux run` is given
  image                     reference and pullPolicy
  settings, ownSettings     those of all with its own on top; only what differs for it
  topic, group, partitions  that Kafka's lag is counted by; "" where it reads none
  apart                     whether its probes and metrics have a port apart from its API
  grace                     terminationGracePeriodSeconds
  scaler                    keda, hpa, or none: then `replicas` hold
  most                      the most pods that run at once, rollouts apart
*/}}
{{- define "taskflux.handlers" -}}
{{- include "taskflux.check" . -}}
{{- include "taskflux.enabled" . -}}
{{- end -}}

{{/* The same, not yet checked. */}}
{{- define "taskflux.enabled" -}}
{{- $handlers := dict -}}
{{- range $name, $own := .Values.handlers -}}
{{- $handler := include "taskflux.handler" (list $ $name $own) | fromJson -}}
{{- if and $handler.enabled (or (hasKey ($own | default dict) "enabled") (not (include "taskflux.missing" (list $ $handler)))) -}}
{{- $_ := set $handlers $name $handler -}}
{{- end -}}
{{- end -}}
{{- toJson $handlers -}}
{{- end -}}

{{/*
The settings of its provider that a handler lacks; "" where it lacks none. It is then off, unless its own values enable it: an install without
a provider works: (list $ handler).
*/}}
{{- define "taskflux.missing" -}}
{{- $msg91 := (first .).Values.secrets.msg91.existingSecret -}}
{{- with last . -}}
{{- $smtp := .settings.smtp.host -}}
{{- if and (eq .target "process-email") (not $smtp) (not .settings.notify.url) -}}
settings.smtp.host
{{- else if and (eq .target "process-sms") (not $msg91) (not .settings.notify.url) -}}
secrets.msg91.existingSecret
{{- else if and (eq .target "notify") (not $smtp) (not $msg91) -}}
settings.smtp.host or secrets.msg91.existingSecret
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The handlers that are off for what they lack, as JSON: name → what. */}}
{{- define "taskflux.lacking" -}}
{{- $lacking := dict -}}
{{- range $name, $own := .Values.handlers -}}
{{- $handler := include "taskflux.handler" (list $ $name $own) | fromJson -}}
{{- if and $handler.enabled (not (hasKey ($own | default dict) "enabled")) -}}
{{- with include "taskflux.missing" (list $ $handler) -}}{{- $_ := set $lacking $name . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $lacking -}}
{{- end -}}

{{- define "taskflux.handler" -}}
{{- $root := first . -}}
{{- $name := index . 1 -}}
{{- $handler := mergeOverwrite (deepCopy $root.Values.handlerDefaults) (index . 2 | default dict) -}}
{{- /* Lists replace each other; of variables, those with another name stay. */ -}}
{{- $_ := set $handler "extraEnv" (concat ($root.Values.handlerDefaults.extraEnv | default list) ((index . 2 | default dict).extraEnv | default list)) -}}
{{- $target := $handler.target | default $name -}}
{{- $settings := mergeOverwrite (deepCopy $root.Values.settings) (deepCopy $handler.settings) -}}
{{- $grace := int (add $handler.drainSeconds 20 (ternary $handler.lingerSeconds 0 $handler.service.enabled)) -}}
{{- /* Kubernetes refuses settings of rolling updates if the strategy is another one. */ -}}
{{- if eq ($handler.strategy.type | default "") "Recreate" -}}{{- $_ := set $handler "strategy" (dict "type" "Recreate") -}}{{- end -}}
{{- $_ := set $handler "name" $name -}}
{{- /* KEDA calls its HorizontalPodAutoscaler keda-hpa-<name>, in a label: 63 characters at most. */ -}}
{{- $_ := set $handler "fullname" (include "taskflux.named" (list $root $name 54)) -}}
{{- $_ := set $handler "target" $target -}}
{{- $_ := set $handler "image" (include "taskflux.image" (list $root $handler.image) | fromJson) -}}
{{- if and $settings.notify.url (has $target (list "process-email" "process-sms")) -}}
{{- /* The notification service delivers, so only it needs the credentials. */ -}}
{{- $_ := set $handler "secrets" (without $handler.secrets "smtp" "msg91") -}}
{{- end -}}
{{- $_ := set $handler "ownSettings" $handler.settings -}}
{{- $_ := set $handler "settings" $settings -}}
{{- $_ := set $handler "topic" (include "taskflux.topic" (list $handler $settings)) -}}
{{- $_ := set $handler "group" (include "taskflux.group" (list $handler $settings)) -}}
{{- $_ := set $handler "partitions" ($handler.scaling.partitions | default $settings.kafka.partitions | int) -}}
{{- $_ := set $handler "apart" (and $handler.service.enabled (not (empty $handler.managementPort))) -}}
{{- $_ := set $handler "grace" ($handler.terminationGracePeriodSeconds | default $grace | int) -}}
{{- $scaler := "none" -}}
{{- if and $handler.scaling.enabled $root.Values.keda.enabled -}}
{{- $scaler = "keda" -}}
{{- else if and $handler.scaling.enabled $handler.scaling.cpuUtilization -}}
{{- $scaler = "hpa" -}}
{{- end -}}
{{- $_ := set $handler "scaler" $scaler -}}
{{- $_ := set $handler "most" (ternary $handler.replicas $handler.scaling.maxReplicas (eq $scaler "none") | int) -}}
{{- toJson $handler -}}
{{- end -}}

{{/* (list handler settings); the names are those of taskflux/stream/topics.py. */}}
{{- define "taskflux.topic" -}}
{{- $handler := first . -}}
{{- $settings := last . -}}
{{- if $handler.topic -}}
{{- $handler.topic -}}
{{- else if $handler.taskType -}}
{{- $settings.kafka.topicPrefix }}tasks.{{ $handler.taskType -}}
{{- else if eq $handler.target "dlq-sink" -}}
{{- $settings.kafka.topicPrefix }}tasks.dlq
{{- else if eq $handler.target "router" -}}
{{- $settings.router.topic -}}
{{- end -}}
{{- end -}}

{{- define "taskflux.group" -}}
{{- $handler := first . -}}
{{- $settings := last . -}}
{{- if $handler.group -}}
{{- $handler.group -}}
{{- else if $handler.taskType -}}
{{- $settings.kafka.topicPrefix }}taskflux.{{ $handler.taskType -}}
{{- else if has $handler.target (list "dlq-sink" "router") -}}
{{- $settings.kafka.topicPrefix }}taskflux.{{ $handler.target -}}
{{- end -}}
{{- end -}}

{{/*
The values for a Job or a test: `handlerDefaults` as for a handler of this name, with its own servers:
(list $ name secrets). As JSON.
*/}}
{{- define "taskflux.helper" -}}
{{- $own := dict "secrets" (index . 2) "service" (dict "enabled" false) -}}
{{- include "taskflux.handler" (list (first .) (index . 1) $own) -}}
{{- end -}}
