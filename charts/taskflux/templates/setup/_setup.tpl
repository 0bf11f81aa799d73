{{/*
What comes before an install and an upgrade has objects of its own, since the release's do not exist yet or are those of the version before.
They go when all has succeeded. A Job that failed stays with its pods, so that its log can be read, until it is tried again.
(weight)
*/}}
{{- define "taskflux.hook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/*
The Jobs, as a JSON list in their order: `name`, `handler` (what the pod is like), `steps` (name, arguments, and the handler that its container is
like). The first is the main image's: it migrates, and prepares the built-in types and those of own handlers in that image. Each other image
prepares the types of its own handlers. A handler's code may need its environment and its volumes to be imported.
*/}}
{{- define "taskflux.setupJobs" -}}
{{- $servers := list "postgres" "kafka" -}}
{{- $main := include "taskflux.helper" (list $ "setup" $servers) | fromJson -}}
{{- $_ := set $main "migrates" true -}}
{{- $wait := list "--wait" (printf "%ds" (int .Values.setup.waitSeconds)) -}}
{{- $migrate := dict "name" "migrate" "args" (concat (list "migrate") $wait) "handler" $main -}}
{{- $topics := dict "name" "topics" "args" (concat (list "topics") $wait (include "taskflux.leftOut" . | fromJsonArray)) "handler" $main -}}
{{- $first := dict "name" (include "taskflux.setupName" .) "handler" $main "steps" (list $migrate $topics) -}}
{{- $images := dict $main.image.reference $first -}}
{{- $jobs := list $first -}}
{{- range $name, $each := include "taskflux.handlers" $ | fromJson -}}
{{- $elsewhere := ne $each.image.reference $main.image.reference -}}
{{- if and $each.taskType (or $elsewhere (contains ":" $each.target)) -}}
{{- $handler := mergeOverwrite (deepCopy $each) (dict "secrets" $servers "service" (dict "enabled" false)) -}}
{{- $job := get $images $handler.image.reference -}}
{{- if not $job -}}
{{- $job = dict "name" (include "taskflux.named" (list $ (printf "setup-%s" $name))) "handler" (deepCopy $handler) "steps" list -}}
{{- $_ := set $images $handler.image.reference $job -}}
{{- $jobs = append $jobs $job -}}
{{- end -}}
{{- $step := dict "name" (printf "topics-%s" $name) "args" (concat (list "topics") $wait (list $handler.target)) "handler" $handler -}}
{{- $_ := set $job "steps" (append $job.steps $step) -}}
{{- $volumes := dict -}}
{{- range concat ($job.handler.extraVolumes | default list) ($handler.extraVolumes | default list) -}}{{- $_ := set $volumes .name . -}}{{- end -}}
{{- $all := list -}}
{{- range $volumes -}}{{- $all = append $all . -}}{{- end -}}
{{- $_ := set $job.handler "extraVolumes" $all -}}
{{- end -}}
{{- end -}}
{{- toJson $jobs -}}
{{- end -}}

{{/* What keeps the types of built-in handlers that are not deployed from being registered: their tasks would wait for ever. */}}
{{- define "taskflux.leftOut" -}}
{{- $deployed := list -}}
{{- range include "taskflux.handlers" $ | fromJson -}}{{- $deployed = append $deployed .target -}}{{- end -}}
{{- $words := list -}}
{{- range list "process-email" "process-simulated" "process-sms" -}}
{{- if not (has . $deployed) -}}{{- $words = concat $words (list "--without" .) -}}{{- end -}}
{{- end -}}
{{- toJson $words -}}
{{- end -}}

{{- define "taskflux.setupName" -}}
{{- include "taskflux.named" (list . "setup") -}}
{{- end -}}

{{- define "taskflux.setupServiceAccountName" -}}
{{- ternary (include "taskflux.setupName" .) (include "taskflux.serviceAccountName" .) .Values.serviceAccount.create -}}
{{- end -}}

{{/* A container of a Job: (list $ step). */}}
{{- define "taskflux.setupStep" -}}
{{- $root := first . -}}
- name: {{ (last .).name }}
  args: {{ (last .).args | toJson }}
  {{- include "taskflux.container" (list $root (last .).handler (include "taskflux.setupName" $root)) | nindent 2 }}
  resources:
    {{- toYaml $root.Values.setup.resources | nindent 4 }}
{{- end -}}
