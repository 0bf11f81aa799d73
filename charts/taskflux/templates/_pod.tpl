{{/*
A pod's spec from its containers on down is the caller's; this is the rest: (list $ handler serviceAccountName). Restricted Pod
Security, and nobody's rights to the cluster.
*/}}
{{- define "taskflux.podSpec" -}}
{{- $root := first . -}}
{{- $handler := index . 1 -}}
serviceAccountName: {{ index . 2 }}
automountServiceAccountToken: {{ $root.Values.serviceAccount.automount | default false }}
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ if kindIs "map" . }}{{ .name }}{{ else }}{{ . }}{{ end }}
  {{- end }}
{{- end }}
{{- with $handler.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- with $handler.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $handler.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $handler.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $handler.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $handler.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $handler.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $handler.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml $handler.podSecurityContext | nindent 2 }}
volumes:
  - name: tmp
    emptyDir: {medium: Memory, sizeLimit: {{ $handler.tmpSize }}}
  {{- range $name, $sources := include "taskflux.mounted" (list $root $handler) | fromJson }}
  - name: {{ $name }}-secrets
    {{- if eq (len $sources) 1 }}
    {{- $source := first $sources }}
    secret:
      secretName: {{ $source.secret }}
      defaultMode: 0440
      items:
        {{- toYaml $source.items | nindent 8 }}
    {{- else }}
    projected:
      defaultMode: 0440
      sources:
        {{- range $sources }}
        - secret:
            name: {{ .secret }}
            items:
              {{- toYaml .items | nindent 14 }}
        {{- end }}
    {{- end }}
  {{- end }}
  {{- with $handler.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* What every container has but for its name, arguments, probes and resources: (list $ handler configMap [more env]). */}}
{{- define "taskflux.container" -}}
{{- $root := first . -}}
{{- $handler := index . 1 -}}
image: {{ $handler.image.reference | quote }}
imagePullPolicy: {{ $handler.image.pullPolicy }}
securityContext:
  {{- toYaml $handler.securityContext | nindent 2 }}
envFrom:
  - configMapRef: {name: {{ index . 2 }}}
  {{- with $handler.extraEnvFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
env:
  {{- include "taskflux.env" (concat (list $root $handler) (slice . 3)) | trim | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- range $name, $files := include "taskflux.mounted" (list $root $handler) | fromJson }}
  - {name: {{ $name }}-secrets, mountPath: /etc/taskflux/{{ $name }}, readOnly: true}
  {{- end }}
  {{- with $handler.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
