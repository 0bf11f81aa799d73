{{/* The chart's name, for the label app.kubernetes.io/name. */}}
{{- define "taskflux.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The prefix of all objects' names. */}}
{{- define "taskflux.fullname" -}}
{{- $name := include "taskflux.name" . -}}
{{- $own := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $own | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/*
An object's name: (list $ "relay" [most characters]). A name that is too long is cut in its middle, where a hash of the full name keeps it
unique.
*/}}
{{- define "taskflux.named" -}}
{{- $suffix := index . 1 -}}
{{- $most := rest . | rest | first | default 63 | int -}}
{{- $prefix := include "taskflux.fullname" (first .) -}}
{{- if gt (add (len $prefix) 1 (len $suffix) | int) $most -}}
{{- $room := sub $most (len $suffix | add 8) | int -}}
{{- $prefix = printf "%s-%s" (trunc $room $prefix | trimSuffix "-") (sha256sum $prefix | trunc 6) -}}
{{- end -}}
{{- printf "%s-%s" $prefix $suffix -}}
{{- end -}}

{{/* Labels that select: (list $ "relay"). They never change, since a Deployment's selector cannot. */}}
{{- define "taskflux.selector" -}}
app.kubernetes.io/name: {{ include "taskflux.name" (first .) }}
app.kubernetes.io/instance: {{ (first .).Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* All labels of an object: (list $ "relay" [more labels]). The chart's own win over those of the values. */}}
{{- define "taskflux.labels" -}}
{{- $root := first . -}}
{{- $own := include "taskflux.selector" (list $root (index . 1)) | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "taskflux" -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/version" ($root.Chart.AppVersion | replace "+" "_" | trunc 63) -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- $more := rest . | rest | first | default dict -}}
{{- toYaml (merge $own (deepCopy $more) (deepCopy $root.Values.commonLabels)) -}}
{{- end -}}

{{/* Labels of a pod: (list $ "relay" [more labels]). Those of a release are left out: each release would replace every pod. */}}
{{- define "taskflux.podLabels" -}}
{{- $own := include "taskflux.selector" (list (first .) (index . 1)) | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "taskflux" -}}
{{- $more := rest . | rest | first | default dict -}}
{{- toYaml (merge $own (deepCopy $more) (deepCopy (first .).Values.commonLabels)) -}}
{{- end -}}

{{/* `metadata` of an object: (list $ name component [annotations [labels]]). */}}
{{- define "taskflux.metadata" -}}
{{- $root := first . -}}
{{- $annotations := rest . | rest | rest | first | default dict -}}
{{- $labels := rest . | rest | rest | rest | first | default dict -}}
metadata:
  name: {{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "taskflux.labels" (list $root (index . 2) $labels) | nindent 4 }}
  {{- with merge (deepCopy $annotations) (deepCopy $root.Values.commonAnnotations) }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "taskflux.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "taskflux.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* An image with what is not said of it taken from `image`, as JSON: (list $ own). A tag of its own ends an inherited digest. */}}
{{- define "taskflux.image" -}}
{{- $own := index . 1 | default dict -}}
{{- $image := mergeOverwrite (deepCopy (first .).Values.image) $own -}}
{{- if and (or $own.registry $own.repository $own.tag) (not $own.digest) -}}{{- $_ := set $image "digest" "" -}}{{- end -}}
{{- $tag := $image.tag | default (first .).Chart.AppVersion -}}
{{- $name := ternary (printf "%s/%s" $image.registry $image.repository) $image.repository (not (empty $image.registry)) -}}
{{- $reference := ternary (printf "%s@%s" $name $image.digest) (printf "%s:%s" $name $tag) (not (empty $image.digest)) -}}
{{- dict "reference" $reference "pullPolicy" $image.pullPolicy | toJson -}}
{{- end -}}
