{{/*
What comes before an install and an upgrade has objects of its own, since the release's do not exist yet or are those of the version before.
They go when all has succeeded. A Job that failed stays with its pods, so that its log can be read, until it is tried again.
Without hooks, nothing is annotated: (list $ weight).
*/}}
{{- define "taskflux.hook" -}}
{{- if include "taskflux.hooked" (first .) -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ last . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{/* Whether the set-up is made of hooks; else its Jobs are ordinary objects, and the handlers' pods wait for them. */}}
{{- define "taskflux.hooked" -}}
{{- if ne (toString .Values.setup.useHelmHooks) "false" -}}true{{- end -}}
{{- end -}}

{{/*
The init container by which a handler's pod waits for a set-up that is no hook, in TaskFlux's image as the set-up itself: (list $ handler).
*/}}
{{- define "taskflux.awaitSetup" -}}
{{- $root := first . -}}
{{- $handler := mergeOverwrite (deepCopy (last .)) (dict "secrets" (list "postgres") "apart" false "service" (dict "enabled" false)) -}}
{{- $_ := set $handler "image" (include "taskflux.image" (list $root dict) | fromJson) -}}
- name: await-setup
  args: [migrate, --check, --wait, {{ printf "%ds" (int $root.Values.setup.activeDeadlineSeconds) }}]
  {{- include "taskflux.container" (list $root $handler (include "taskflux.fullname" $root)) | nindent 2 }}
  resources:
    {{- toYaml $root.Values.setup.resources | nindent 4 }}
{{- end -}}

{{/*
The Jobs, as a JSON list in their order: `name` (as a hook) and `suffix`, which its other name has, `handler` (what the pod is like), `steps` (name, arguments, and the handler that its container is
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
{{- $first := dict "name" (include "taskflux.setupName" .) "suffix" "setup" "handler" $main "steps" (list $migrate $topics) -}}
{{- $images := dict $main.image.reference $first -}}
{{- $jobs := list $first -}}
{{- range $name, $each := include "taskflux.handlers" $ | fromJson -}}
{{- $elsewhere := ne $each.image.reference $main.image.reference -}}
{{- if and $each.taskType (or $elsewhere (contains ":" $each.target)) -}}
{{- $handler := mergeOverwrite (deepCopy $each) (dict "secrets" $servers "service" (dict "enabled" false)) -}}
{{- $job := get $images $handler.image.reference -}}
{{- if not $job -}}
{{- $job = dict "name" (include "taskflux.named" (list $ (printf "setup-%s" $name))) "suffix" (printf "setup-%s" $name) "handler" (deepCopy $handler) "steps" list -}}
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

{{/*
What keeps the tasks of handlers that are not deployed from being accepted: they would wait for ever. The type of a built-in handler that one of
your own runs instead is declared by that alone.
*/}}
{{- define "taskflux.leftOut" -}}
{{- $targets := list -}}
{{- $served := list -}}
{{- $handlers := include "taskflux.handlers" $ | fromJson -}}
{{- range $handlers -}}
{{- $targets = append $targets .target -}}
{{- $served = append $served .taskType -}}
{{- end -}}
{{- $elsewhere := .Values.setup.elsewhere | default list -}}
{{- $off := dict -}}
{{- range $name, $own := .Values.handlers -}}
{{- $handler := include "taskflux.handler" (list $ $name $own) | fromJson -}}
{{- if and $handler.taskType (not (hasKey $handlers $name)) (not (has $name $elsewhere)) (not (has $handler.taskType $served)) -}}
{{- $_ := set $off $handler.taskType $name -}}
{{- end -}}
{{- end -}}
{{- $words := list -}}
{{- range $type := list "email" "simulated" "sms" -}}
{{- $name := printf "process-%s" $type -}}
{{- if and (not (has $name $targets)) (not (has $name $elsewhere)) -}}
{{- $words = concat $words (list (ternary "--without" "--off" (has $type $served)) $name) -}}
{{- $_ := unset $off $type -}}
{{- end -}}
{{- end -}}
{{- range $type, $name := $off -}}{{- $words = concat $words (list "--off" (printf "%s=%s" $name $type)) -}}{{- end -}}
{{- toJson $words -}}
{{- end -}}

{{- define "taskflux.setupName" -}}
{{- include "taskflux.named" (list . "setup") -}}
{{- end -}}

{{- define "taskflux.setupServiceAccountName" -}}
{{- ternary (include "taskflux.setupName" .) (include "taskflux.serviceAccountName" .) (and .Values.serviceAccount.create (not (empty (include "taskflux.hooked" .)))) -}}
{{- end -}}

{{/* A container of a Job: (list $ step). */}}
{{- define "taskflux.setupStep" -}}
{{- $root := first . -}}
- name: {{ (last .).name }}
  args: {{ (last .).args | toJson }}
  {{- include "taskflux.container" (list $root (last .).handler (ternary (include "taskflux.setupName" $root) (include "taskflux.fullname" $root) (not (empty (include "taskflux.hooked" $root))))) | nindent 2 }}
  resources:
    {{- toYaml $root.Values.setup.resources | nindent 4 }}
{{- end -}}

{{/* The spec of a Job: (list $ job). */}}
{{- define "taskflux.setupJob" -}}
{{- $root := first . -}}
{{- $job := last . -}}
backoffLimit: {{ int $root.Values.setup.backoffLimit }}
template:
  metadata:
    labels:
      {{- include "taskflux.podLabels" (list $root "setup" $job.handler.podLabels) | nindent 6 }}
    {{- with $root.Values.setup.podAnnotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    restartPolicy: Never
    {{- /* Of the pod and not of the Job, which would delete it, and the log that says what it waited for. */}}
    activeDeadlineSeconds: {{ int $root.Values.setup.activeDeadlineSeconds }}
    {{- include "taskflux.podSpec" (list $root $job.handler (include "taskflux.setupServiceAccountName" $root)) | nindent 4 }}
    {{- with initial $job.steps }}
    initContainers:
      {{- range . }}
      {{- include "taskflux.setupStep" (list $root .) | nindent 6 }}
      {{- end }}
    {{- end }}
    containers:
      {{- include "taskflux.setupStep" (list $root (last $job.steps)) | nindent 6 }}
{{- end -}}
