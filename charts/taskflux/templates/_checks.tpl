{{/*
Contradictory or missing values: one sentence per line, each of which says what to change. All are reported at once, so that
nobody has to fix them one render at a time.
*/}}
{{- define "taskflux.check" -}}
{{- $found := list -}}
{{- range $part := list "taskflux.complaints.servers" "taskflux.complaints.kafka" "taskflux.complaints.smtp" "taskflux.complaints.access" "taskflux.complaints.rest" -}}
{{- $found = concat $found (include $part $ | fromJsonArray) -}}
{{- end -}}
{{- range $name, $handler := include "taskflux.enabled" $ | fromJson -}}
{{- $found = concat $found (include "taskflux.complaints.handler" (list $ $handler) | fromJsonArray) -}}
{{- $found = concat $found (include "taskflux.complaints.scaling" (list $ $handler) | fromJsonArray) -}}
{{- end -}}
{{- if $found -}}
{{- printf "these values cannot be deployed:\n- %s" (join "\n- " ($found | uniq)) | fail -}}
{{- end -}}
{{- end -}}

{{- define "taskflux.complaints.servers" -}}
{{- $found := list -}}
{{- with .Values -}}
{{- if not .settings.kafka.bootstrapServers -}}
{{- $found = append $found "settings.kafka.bootstrapServers is not set: give it the brokers, host:port[,host:port…]" -}}
{{- end -}}
{{- if not .secrets.postgres.existingSecret -}}
{{- $found = append $found (printf "secrets.postgres.existingSecret is not set: name the Secret whose key `%s` is PostgreSQL's DSN" .secrets.postgres.dsnKey) -}}
{{- end -}}
{{- range $server, $key := dict "postgres" "dsnKey" "redis" "urlKey" "msg91" "authKeyKey" -}}
{{- $secret := get $.Values.secrets $server -}}
{{- if and $secret.existingSecret (not (get $secret $key)) -}}
{{- $found = append $found (printf "secrets.%s.%s is empty: name the key of the Secret %s that is to be read" $server $key $secret.existingSecret) -}}
{{- end -}}
{{- end -}}
{{- range $server, $secret := .secrets -}}
{{- if not $secret.existingSecret -}}
{{- /* A CA may be all that is needed of a server; Redis is not used without its URL. */ -}}
{{- $alone := and $secret.caSecret (ne $server "redis") -}}
{{- range $key := concat (list "certKey" "keyKey" "webhookSecretKey") (ternary list (list "caKey" "caSecret") (not (empty $alone))) -}}
{{- if get $secret $key -}}
{{- $found = append $found (printf "secrets.%s.%s is set, but secrets.%s.existingSecret is not: name the Secret that has it" $server $key $server) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "taskflux.complaints.kafka" -}}
{{- $found := list -}}
{{- $secret := .Values.secrets.kafka -}}
{{- with .Values.settings.kafka -}}
{{- if hasPrefix "SASL" .securityProtocol -}}
{{- if not (and $secret.existingSecret $secret.passwordKey) -}}
{{- $found = append $found (printf "settings.kafka.securityProtocol is %s, which needs a password: set secrets.kafka.existingSecret and secrets.kafka.passwordKey" .securityProtocol) -}}
{{- end -}}
{{- if not (or .saslUsername (and $secret.existingSecret $secret.usernameKey)) -}}
{{- $found = append $found (printf "settings.kafka.securityProtocol is %s, which needs a user: set secrets.kafka.usernameKey, or settings.kafka.saslUsername" .securityProtocol) -}}
{{- end -}}
{{- else if or $secret.usernameKey $secret.passwordKey .saslUsername -}}
{{- $found = append $found (printf "a user or password for Kafka is named, but settings.kafka.securityProtocol is %s: set it to SASL_SSL (or SASL_PLAINTEXT), or clear secrets.kafka.usernameKey, secrets.kafka.passwordKey and settings.kafka.saslUsername" .securityProtocol) -}}
{{- end -}}
{{- if and .saslUsername $secret.usernameKey -}}
{{- $found = append $found "settings.kafka.saslUsername and secrets.kafka.usernameKey both name Kafka's user: clear one of them" -}}
{{- end -}}
{{- if and (or $secret.caSecret $secret.caKey $secret.certKey $secret.keyKey) (not (hasSuffix "SSL" .securityProtocol)) -}}
{{- $found = append $found (printf "secrets.kafka names a certificate, but settings.kafka.securityProtocol is %s: set it to SSL or SASL_SSL" .securityProtocol) -}}
{{- end -}}
{{- if ne (empty $secret.certKey) (empty $secret.keyKey) -}}
{{- $found = append $found "secrets.kafka.certKey and secrets.kafka.keyKey belong together: set both, or neither" -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "taskflux.complaints.smtp" -}}
{{- $found := list -}}
{{- with .Values.secrets.smtp -}}
{{- $user := $.Values.settings.smtp.username -}}
{{- $password := and .existingSecret (or .passwordKey .accessTokenKey) -}}
{{- if and $user .existingSecret .usernameKey -}}
{{- $found = append $found "settings.smtp.username and secrets.smtp.usernameKey both name the user of the SMTP server: clear one of them" -}}
{{- else if and (or $user (and .existingSecret .usernameKey)) (not $password) -}}
{{- $found = append $found "the SMTP server has a user but no password: set secrets.smtp.existingSecret and secrets.smtp.passwordKey, or clear the user for a server without AUTH" -}}
{{- else if and $password (not $user) (not .usernameKey) -}}
{{- $found = append $found "the SMTP server has a password but no user: set secrets.smtp.usernameKey or settings.smtp.username, or clear secrets.smtp.passwordKey for a server without AUTH" -}}
{{- end -}}
{{- if and (or .caSecret .caKey) (or (eq ($.Values.settings.smtp.tls | default "") "none") (eq ($.Values.settings.smtp.tlsVerify | toString) "false")) -}}
{{- $found = append $found "secrets.smtp names a CA, but settings.smtp verifies nothing: set tls to starttls or implicit and leave tlsVerify true, or clear the key" -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "taskflux.complaints.access" -}}
{{- $found := list -}}
{{- if and .Release.IsUpgrade (not .Values.settings.auth.mode) -}}
{{- $before := lookup "v1" "ConfigMap" .Release.Namespace (include "taskflux.fullname" $) -}}
{{- if and $before (not (hasKey ($before.data | default dict) "TASKFLUX_AUTH__MODE")) -}}
{{- $found = append $found "this release asked for no key so far, and its clients send none. Set settings.auth.mode: optional takes both, so make keys with `taskflux keys create` after the upgrade, give them to the clients, and set required then; required asks for a key at once, so also name secrets.auth.existingSecret; off leaves it as it is" -}}
{{- end -}}
{{- end -}}
{{- if eq (include "taskflux.authMode" $) "required" -}}
{{- range $name, $handler := include "taskflux.enabled" $ | fromJson -}}
{{- if and $handler.settings.notify.url $handler.taskType (has $handler.target (list "process-email" "process-sms")) (not $.Values.secrets.notify.existingSecret) -}}
{{- $found = append $found "settings.notify.url is set, but secrets.notify.existingSecret is not: name the Secret with the key that handlers send to notify" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "taskflux.complaints.rest" -}}
{{- $found := list -}}
{{- $handlers := include "taskflux.enabled" . | fromJson -}}
{{- if .Values.ingress.enabled -}}
{{- range .Values.ingress.hosts -}}
{{- range .paths -}}
{{- $handler := get $handlers .handler | default dict -}}
{{- if not (dig "service" "enabled" false $handler) -}}
{{- $found = append $found (printf "ingress.hosts leads %s to the handler %q, which is not deployed or has no Service: name another, or set handlers.%s.enabled and handlers.%s.service.enabled" .path .handler .handler .handler) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not .Values.ingress.hosts -}}
{{- $found = append $found "ingress.enabled is true, but ingress.hosts is empty: say which paths lead to which handler" -}}
{{- end -}}
{{- end -}}
{{- with .Values.httpRoute -}}
{{- if .enabled -}}
{{- range .paths -}}
{{- $handler := get $handlers .handler | default dict -}}
{{- if not (dig "service" "enabled" false $handler) -}}
{{- $found = append $found (printf "httpRoute.paths leads %s to the handler %q, which is not deployed or has no Service: name another, or set handlers.%s.enabled and handlers.%s.service.enabled" .path .handler .handler .handler) -}}
{{- end -}}
{{- end -}}
{{- if not .paths -}}
{{- $found = append $found "httpRoute.enabled is true, but httpRoute.paths is empty: say which paths lead to which handler" -}}
{{- end -}}
{{- if not .parentRefs -}}
{{- $found = append $found "httpRoute.enabled is true, but httpRoute.parentRefs is empty: name the Gateway that it attaches to" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.apiFrom) -}}
{{- range $outside := list "ingress" "httpRoute" -}}
{{- $led := dict "api" false -}}
{{- with get $.Values $outside | default dict -}}
{{- if .enabled -}}
{{- $paths := .paths | default list -}}
{{- range .hosts -}}{{- $paths = concat $paths (.paths | default list) -}}{{- end -}}
{{- range $paths -}}
{{- if ne "notify" (get $handlers .handler | default dict | dig "target" "") -}}{{- $_ := set $led "api" true -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $led.api -}}
{{- $found = append $found (printf "%s.enabled is true, but networkPolicy.apiFrom is empty, so that only the release's own pods may call the API: set it to the pods of the Ingress controller or Gateway, [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: <its namespace>}}}]" $outside) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.keda -}}
{{- if and .enabled .pushScaler.enabled -}}
{{- $relay := include "taskflux.scalerRelay" $ | fromJson -}}
{{- if not $relay -}}
{{- $found = append $found "keda.pushScaler.enabled is true, but no relay is deployed to serve it: set handlers.relay.enabled, or keda.pushScaler.enabled=false" -}}
{{- else if eq (int $relay.port) (int .pushScaler.port) -}}
{{- $found = append $found (printf "keda.pushScaler.port is %d, which handlers.%s.port has already: choose another" (int .pushScaler.port) $relay.name) -}}
{{- end -}}
{{- $tls := .pushScaler.tls -}}
{{- if and (or $tls.clientCaKey $tls.clientSecret) (not $tls.existingSecret) -}}
{{- $found = append $found "keda.pushScaler.tls names a client's CA or certificate, but no existingSecret: name the Secret with the relays' certificate" -}}
{{- else if ne (empty $tls.clientCaKey) (empty $tls.clientSecret) -}}
{{- $found = append $found "keda.pushScaler.tls.clientCaKey and clientSecret belong together: KEDA needs a certificate of the CA that the relays ask for" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range .Values.setup.elsewhere -}}
{{- if not (or (hasKey $.Values.handlers .) (has . (list "process-email" "process-simulated" "process-sms"))) -}}
{{- $found = append $found (printf "setup.elsewhere names %q, which is no handler: name one of TaskFlux, or one in handlers" .) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.strimzi.cluster .Values.strimzi.user -}}
{{- if include "taskflux.hooked" . -}}
{{- $found = append $found "strimzi.user is true, but the set-up is made of hooks, which run before the user exists: set setup.useHelmHooks=false, or create the KafkaUser first" -}}
{{- end -}}
{{- if not .Values.settings.kafka.saslUsername -}}
{{- $found = append $found "strimzi.user is true, but settings.kafka.saslUsername is not set: name the user" -}}
{{- end -}}
{{- with .Values.settings.kafka -}}
{{- if or (not (hasPrefix "SASL_" .securityProtocol)) (ne .saslMechanism "SCRAM-SHA-512") -}}
{{- $found = append $found "strimzi.user is true, and Strimzi's users log in with SCRAM-SHA-512: set settings.kafka.securityProtocol=SASL_SSL and settings.kafka.saslMechanism=SCRAM-SHA-512" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.prune -}}
{{- if and .enabled (not (or .succeeded .dead .cancelled .deadLetters)) -}}
{{- $found = append $found "prune.enabled is true, but nothing has an age: set prune.succeeded, prune.dead, prune.cancelled or prune.deadLetters, or prune.enabled=false" -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* (list $ handler) */}}
{{- define "taskflux.complaints.handler" -}}
{{- $root := first . -}}
{{- $found := list -}}
{{- $own := get $root.Values.handlers (last .).name | default dict -}}
{{- with last . -}}
{{- $at := printf "handlers.%s" .name -}}
{{- if has .name (list "setup" "prune" "test" "kafka" "postgres") -}}
{{- $found = append $found (printf "%s: the chart has objects of that name itself; give the handler another" $at) -}}
{{- end -}}
{{- if not (or (contains ":" .target) (has .target (list "ingest" "relay" "router" "process-email" "process-sms" "process-simulated" "notify" "dlq-sink"))) -}}
{{- $found = append $found (printf "%s runs %q, which is no part of TaskFlux: set its target to one, or to a handler of your own, my_app.handlers:resize_image" $at .target) -}}
{{- end -}}
{{- $image := $own.image | default dict -}}
{{- if and $image.repository (not (or $image.tag $image.digest)) -}}
{{- $found = append $found (printf "%s.image has a repository of its own, but neither tag nor digest: set one, since TaskFlux's version is not that image's" $at) -}}
{{- end -}}
{{- if not (has "postgres" .secrets) -}}
{{- $found = append $found (printf "%s.secrets lacks postgres, the record of all tasks: add it" $at) -}}
{{- end -}}
{{- if and (not (has "kafka" .secrets)) (or .topic (has .target (list "ingest" "relay"))) -}}
{{- $found = append $found (printf "%s.secrets lacks kafka, which it speaks to: add it" $at) -}}
{{- end -}}
{{- if and .taskType (has .taskType (list "dlq" "dlq-sink" "router")) -}}
{{- $found = append $found (printf "%s.taskType %q is reserved: give the task type another name" $at .taskType) -}}
{{- end -}}
{{- if and (eq .target "router") (not .settings.router.topic) -}}
{{- $found = append $found (printf "%s is enabled, but settings.router.topic is not set: name the topic of mixed types, or set %s.enabled=false" $at $at) -}}
{{- end -}}
{{- $drain := add .drainSeconds (ternary .lingerSeconds 0 .service.enabled) | int -}}
{{- if le (int .grace) $drain -}}
{{- $found = append $found (printf "%s.terminationGracePeriodSeconds (%d) is not above what its end may take, %d s (drainSeconds, and lingerSeconds where it has a Service): raise it by 15 s or more above that, or unset it" $at (int .grace) $drain) -}}
{{- end -}}
{{- if and .apart (eq (int .port) (int .managementPort)) -}}
{{- $found = append $found (printf "%s.managementPort and its port are both %d: set another, or null to have probes and metrics beside the API" $at (int .port)) -}}
{{- end -}}
{{- if and .minReadySeconds .progressDeadlineSeconds (ge (int .minReadySeconds) (int .progressDeadlineSeconds)) -}}
{{- $found = append $found (printf "%s.progressDeadlineSeconds (%d) must be above its minReadySeconds (%d): raise it" $at (int .progressDeadlineSeconds) (int .minReadySeconds)) -}}
{{- end -}}
{{- range concat (.initContainers | default list) (.extraContainers | default list) -}}
{{- if eq .name "taskflux" -}}
{{- $found = append $found (printf "%s has another container named taskflux, like its own: give it another name" $at) -}}
{{- end -}}
{{- end -}}
{{- $found = concat $found (include "taskflux.complaints.provider" (list $root .) | fromJsonArray) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* The provider that a handler delivers through: (list $ handler). */}}
{{- define "taskflux.complaints.provider" -}}
{{- $root := first . -}}
{{- $found := list -}}
{{- with last . -}}
{{- $handler := . -}}
{{- with include "taskflux.missing" (list $root .) -}}
{{- $found = append $found (printf "handlers.%s.enabled is true, but %s is not set: set it, or leave handlers.%s.enabled out, and the handler is off without it" $handler.name . $handler.name) -}}
{{- end -}}
{{- if and .settings.smtp.host (not .settings.smtp.sender) (has "smtp" .secrets) -}}
{{- $found = append $found "settings.smtp.host is set, but settings.smtp.sender is not: set it to the address that mails are from" -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* (list $ handler) */}}
{{- define "taskflux.complaints.scaling" -}}
{{- $root := first . -}}
{{- $found := list -}}
{{- with last . -}}
{{- $at := printf "handlers.%s" .name -}}
{{- $scaling := .scaling -}}
{{- if and .topic (gt (int .most) (int .partitions)) -}}
{{- $what := ternary "replicas" "scaling.maxReplicas" (eq .scaler "none") -}}
{{- $found = append $found (printf "%s.%s (%d) is above the %d partitions of %s: a pod beyond them would get no work. Lower it, or raise settings.kafka.partitions (%s.scaling.partitions where that topic alone has more)" $at $what (int .most) (int .partitions) .topic $at) -}}
{{- end -}}
{{- if ne (empty .topic) (empty .group) -}}
{{- $found = append $found (printf "%s.topic and %s.group belong together: set both, or neither" $at $at) -}}
{{- end -}}
{{- if and (ne .scaler "none") (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- $found = append $found (printf "%s.scaling.minReplicas (%d) is above its maxReplicas (%d)" $at (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq .target "relay") (lt (int (ternary .replicas $scaling.minReplicas (eq .scaler "none"))) 1) -}}
{{- $found = append $found (printf "%s needs one replica at least: it looks after what was lost" $at) -}}
{{- end -}}
{{- if and $scaling.cpuUtilization (ne .scaler "none") (not (dig "requests" "cpu" "" .resources)) -}}
{{- $found = append $found (printf "%s is scaled by CPU in percent of its request, and has none: set %s.resources.requests.cpu" $at $at) -}}
{{- end -}}
{{- if and $scaling.requestRate $scaling.enabled -}}
{{- if not $root.Values.keda.enabled -}}
{{- $found = append $found (printf "%s.scaling.requestRate needs KEDA: set keda.enabled, or scale by cpuUtilization" $at) -}}
{{- else if not $root.Values.keda.prometheus.serverAddress -}}
{{- $found = append $found (printf "%s.scaling.requestRate is set, but keda.prometheus.serverAddress is not: give it the address of Prometheus" $at) -}}
{{- else if not (include "taskflux.requestQuery" (list $root .)) -}}
{{- $found = append $found (printf "%s.scaling.requestRate is set, but nobody counts its requests: set %s.scaling.requestQuery" $at $at) -}}
{{- end -}}
{{- end -}}
{{- if eq .scaler "keda" -}}
{{- $lag := and .topic $scaling.lagThreshold -}}
{{- if and (lt (int $scaling.minReplicas) 1) (not $lag) (not $scaling.extraTriggers) -}}
{{- $found = append $found (printf "%s.scaling.minReplicas is 0, but no lag of Kafka would wake it: set it to 1, or give it a taskType and a lagThreshold" $at) -}}
{{- else if not (include "taskflux.triggers" (list $root .) | trim) -}}
{{- $found = append $found (printf "nothing scales %s: set one of its thresholds under scaling, or scaling.enabled=false for a fixed number of replicas" $at) -}}
{{- end -}}
{{- else if and (eq .scaler "hpa") (lt (int $scaling.minReplicas) 1) -}}
{{- $found = append $found (printf "%s.scaling.minReplicas is 0, which a HorizontalPodAutoscaler cannot do: set it to 1, or keda.enabled" $at) -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
