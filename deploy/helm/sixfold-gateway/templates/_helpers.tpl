{{- define "sixfold.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "sixfold.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "sixfold.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "sixfold.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "sixfold.selector" -}}
app.kubernetes.io/name: {{ include "sixfold.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sixfold.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "sixfold.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "sixfold.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{- define "sixfold.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "sixfold.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* "true" where there is an Admin API. */}}
{{- define "sixfold.admin" -}}
{{- and (eq .Values.mode "traditional") .Values.admin.enabled -}}
{{- end }}

{{- define "sixfold.adminSecret" -}}
{{- default (printf "%s-admin-key" (include "sixfold.fullname" .)) .Values.admin.key.existingSecret -}}
{{- end }}

{{/* Keys of config.yaml that other objects of the chart are made after, and the value that says the same for all of them. */}}
{{- define "sixfold.derived" -}}
apisix.node_listen: service.http, whose port leads to 9080
apisix.ssl.enable: service.https.enabled
apisix.ssl.listen: service.https, whose port leads to 9443
apisix.status: probes, which ask port 7085
apisix.enable_admin: admin.enabled
apisix.proxy_mode: streams
apisix.stream_proxy: streams
nginx_config.worker_shutdown_timeout: drain.timeoutSeconds, which terminationGracePeriodSeconds follows
plugin_attr.prometheus.enable_export_server: metrics.enabled
plugin_attr.prometheus.export_addr: metrics, which are at port 9091
plugin_attr.prometheus.export_uri: metrics, which are at /apisix/prometheus/metrics
deployment.role: mode
deployment.role_traditional: mode
deployment.role_data_plane: mode
deployment.role_control_plane: mode
deployment.embedded: traditional.persistence, whose volume is at /var/lib/sixfold
deployment.admin.admin_listen: admin, whose port is 9180
{{- end }}

{{/* Fails for what would be one thing in config.yaml and another in the objects. */}}
{{- define "sixfold.agrees" -}}
{{- $config := .Values.config -}}
{{- range $path, $value := include "sixfold.derived" . | fromYaml -}}
{{- $at := dict "value" $config "found" true -}}
{{- range splitList "." $path -}}
{{- if and $at.found (kindIs "map" $at.value) -}}
{{- $_ := set $at "found" (hasKey $at.value .) -}}
{{- $_ := set $at "value" (get $at.value .) -}}
{{- else -}}
{{- $_ := set $at "found" false -}}
{{- end -}}
{{- end -}}
{{- if $at.found }}{{ fail (printf "config.%s: other objects are made after it; write %s" $path $value) }}{{ end -}}
{{- end -}}
{{- range $section := list "http" "stream" -}}
{{- $log := dig "nginx_config" $section "access_log" "off" $config | toString -}}
{{- if and (ne $log "off") (or (not (hasPrefix "/" $log)) (hasPrefix "/var/lib/sixfold" $log)) -}}
{{- fail (printf "config.nginx_config.%s.access_log: %s is in the volume of the store; write /dev/stdout, or a file of a volume of extraVolumes" $section $log) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* config.yaml: what this chart needs, and the user's own over it. */}}
{{- define "sixfold.config" -}}
{{- $v := .Values -}}
{{- include "sixfold.agrees" . -}}
{{/* Of a pod with addresses of either family, both are asked. */}}
{{- $every := "::" -}}
{{- $apisix := dict
      "node_listen" (list 9080)
      "ssl" (dict "enable" $v.service.https.enabled "listen" (list (dict "port" 9443)))
      "status" (dict "ip" $every "port" 7085)
      "enable_admin" (eq (include "sixfold.admin" .) "true") -}}
{{- if $v.streams -}}
{{- $hosts := ternary (list "0.0.0.0" "[::]") (list "0.0.0.0") (dig "apisix" "enable_ipv6" true $v.config) -}}
{{- $tcp := list -}}{{- $udp := list -}}
{{- range $stream := $v.streams -}}
{{- range $hosts -}}
{{- $address := printf "%s:%d" . (int $stream.port) -}}
{{- if eq (default "TCP" $stream.protocol) "UDP" }}{{ $udp = append $udp $address }}{{ else }}{{ $tcp = append $tcp (dict "addr" $address "tls" (default false $stream.tls)) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $apisix "proxy_mode" "http&stream" -}}
{{- $_ := set $apisix "stream_proxy" (dict "tcp" $tcp "udp" $udp) -}}
{{- end -}}
{{- $nginx := dict
      "worker_shutdown_timeout" (printf "%ds" (int $v.drain.timeoutSeconds))
      "http" (dict "access_log" "/dev/stdout")
      "stream" (dict "access_log" "/dev/stdout") -}}
{{- $prometheus := dict "enable_export_server" $v.metrics.enabled -}}
{{- if $v.metrics.enabled }}{{- $_ := set $prometheus "export_addr" (dict "ip" $every "port" 9091) }}{{- end -}}
{{- $deployment := dict "embedded" (dict "directory" "/var/lib/sixfold") -}}
{{- if eq $v.mode "standalone" -}}
{{- $_ := set $deployment "role" "data_plane" -}}
{{- $_ := set $deployment "role_data_plane" (dict "config_provider" "yaml") -}}
{{- else if eq $v.mode "traditional" -}}
{{- $_ := set $deployment "role" "traditional" -}}
{{- $_ := set $deployment "role_traditional" (dict "config_provider" "embedded") -}}
{{- if $v.admin.enabled -}}
{{- $key := dict "name" "admin" "role" "admin" "key" "${{SIXFOLD_ADMIN_KEY}}" -}}
{{- $_ := set $deployment "admin" (dict
      "admin_listen" (dict "ip" $every "port" 9180)
      "allow_admin" $v.admin.allow
      "admin_key" (list $key)) -}}
{{- end -}}
{{- else -}}
{{- $_ := set $deployment "role" "data_plane" -}}
{{- $_ := set $deployment "role_data_plane" (dict "config_provider" "etcd") -}}
{{- $etcd := dict "host" $v.etcd.host "prefix" $v.etcd.prefix -}}
{{- if $v.etcd.user -}}
{{- $_ := set $etcd "user" $v.etcd.user -}}
{{- $_ := set $etcd "password" "${{SIXFOLD_ETCD_PASSWORD}}" -}}
{{- end -}}
{{- $tls := dict "verify" $v.etcd.tls.verify -}}
{{- if $v.etcd.tls.sni }}{{- $_ := set $tls "sni" $v.etcd.tls.sni }}{{- end -}}
{{- if $v.etcd.tls.existingSecret -}}
{{- $_ := set $tls "cert" "/etc/sixfold-etcd/tls.crt" -}}
{{- $_ := set $tls "key" "/etc/sixfold-etcd/tls.key" -}}
{{- $_ := set $apisix.ssl "ssl_trusted_certificate" "/etc/sixfold-etcd/ca.crt" -}}
{{- end -}}
{{- $_ := set $etcd "tls" $tls -}}
{{- $_ := set $deployment "etcd" $etcd -}}
{{- end -}}
{{- $base := dict "apisix" $apisix "nginx_config" $nginx "plugin_attr" (dict "prometheus" $prometheus) "deployment" $deployment -}}
{{- toYaml (mergeOverwrite $base (deepCopy $v.config)) -}}
{{- end }}

{{/* The pod of a Deployment and of a StatefulSet. */}}
{{- define "sixfold.pod" -}}
{{- $v := .Values -}}
metadata:
  labels:
    {{- include "sixfold.labels" . | nindent 4 }}
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # config.yaml is read at the start; resources are followed.
    checksum/config: {{ include "sixfold.config" . | sha256sum }}
    {{- with $v.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "sixfold.serviceAccount" . }}
  automountServiceAccountToken: false
  {{- with $v.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  terminationGracePeriodSeconds: {{ add $v.drain.delaySeconds $v.drain.timeoutSeconds 5 }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: gateway
      image: {{ include "sixfold.image" . | quote }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      args: [run, -c, /etc/sixfold/config.yaml]
      workingDir: /var/lib/sixfold
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      {{- $env := include "sixfold.env" . }}
      {{- if $env }}
      env:
        {{- $env | nindent 8 }}
      {{- end }}
      ports:
        - {name: http, containerPort: 9080}
        {{- if $v.service.https.enabled }}
        - {name: https, containerPort: 9443}
        {{- end }}
        {{- range $v.streams }}
        - {name: {{ .name }}, containerPort: {{ .port }}, protocol: {{ default "TCP" .protocol }}}
        {{- end }}
        - {name: status, containerPort: 7085}
        {{- if eq (include "sixfold.admin" .) "true" }}
        - {name: admin, containerPort: 9180}
        {{- end }}
        {{- if $v.metrics.enabled }}
        - {name: metrics, containerPort: 9091}
        {{- end }}
      startupProbe:
        httpGet: {path: /status, port: status}
        {{- toYaml $v.probes.startup | nindent 8 }}
      livenessProbe:
        httpGet: {path: /status, port: status}
        {{- toYaml $v.probes.liveness | nindent 8 }}
      readinessProbe:
        httpGet: {path: /status/ready, port: status}
        {{- toYaml $v.probes.readiness | nindent 8 }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ $v.drain.delaySeconds }}}
      resources:
        {{- toYaml $v.resources | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/sixfold, readOnly: true}
        - {name: store, mountPath: /var/lib/sixfold}
        {{- if and (eq $v.mode "dataPlane") $v.etcd.tls.existingSecret }}
        - {name: etcd-tls, mountPath: /etc/sixfold-etcd, readOnly: true}
        {{- end }}
        {{- with $v.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      projected:
        sources:
          - configMap: {name: {{ include "sixfold.fullname" . }}}
          {{- if eq $v.mode "standalone" }}
          {{- if $v.standalone.existingSecret }}
          - secret: {name: {{ $v.standalone.existingSecret }}, items: [{key: apisix.yaml, path: apisix.yaml}]}
          {{- else if $v.standalone.existingConfigMap }}
          - configMap: {name: {{ $v.standalone.existingConfigMap }}, items: [{key: apisix.yaml, path: apisix.yaml}]}
          {{- end }}
          {{- end }}
    {{- if not (and (eq $v.mode "traditional") $v.traditional.persistence.enabled) }}
    - {name: store, emptyDir: {sizeLimit: 256Mi}}
    {{- end }}
    {{- if and (eq $v.mode "dataPlane") $v.etcd.tls.existingSecret }}
    - {name: etcd-tls, secret: {secretName: {{ $v.etcd.tls.existingSecret }}}}
    {{- end }}
    {{- with $v.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $v.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if $v.topologySpreadConstraints }}
    {{- toYaml $v.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "sixfold.selector" . | nindent 10 }}
    {{- end }}
{{- end }}

{{- define "sixfold.env" -}}
{{- if eq (include "sixfold.admin" .) "true" }}
- name: SIXFOLD_ADMIN_KEY
  valueFrom:
    secretKeyRef: {name: {{ include "sixfold.adminSecret" . }}, key: {{ .Values.admin.key.existingSecretKey }}}
{{- end }}
{{- if and (eq .Values.mode "dataPlane") .Values.etcd.user }}
- name: SIXFOLD_ETCD_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .Values.etcd.existingSecret }}, key: {{ .Values.etcd.existingSecretKey }}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
