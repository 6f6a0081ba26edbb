{{/* A value as a CEL literal. All in `dyn`, since a literal of mixed types is refused. */}}
{{- define "rankguard.cel" -}}
{{- if kindIs "map" . -}}
dyn({ {{- range $at, $key := keys . | sortAlpha }}{{ if $at }}, {{ end }}{{ $key | toJson }}: {{ include "rankguard.cel" (index $ $key) }}{{ end -}} })
{{- else if kindIs "slice" . -}}
dyn([ {{- range $at, $item := . }}{{ if $at }}, {{ end }}{{ include "rankguard.cel" $item }}{{ end -}} ])
{{- else -}}
dyn({{ . | toJson }})
{{- end -}}
{{- end }}

{{/* The sidecar as the policy adds it, before what depends on the pod. Both kinds of resources are there, if empty. */}}
{{- define "rankguard.policy.sidecar" -}}
{{- $options := include "rankguard.options" . | fromYaml -}}
{{- $settings := $options.settings | default dict -}}
{{- with index $options "fleet-switch" }}{{ $settings = merge (dict "fleet-switch" .) $settings }}{{ end -}}
{{- $sidecar := include "rankguard.container" (dict
      "image" $options.image "native" true "pullPolicy" (index $options "image-pull-policy") "settings" $settings
      "sizeLimit" .Values.sidecar.volumeSizeLimit "claim" (ne .Values.sidecar.volume "empty-dir")
      "nvml" .Values.sidecar.nvml "resources" $options.resources) | fromYamlArray | first -}}
{{- $resources := dict "requests" dict "limits" dict -}}
{{- range $kind, $amounts := pick $sidecar.resources "requests" "limits" -}}
{{- range $name, $amount := $amounts -}}{{ $_ := set (index $resources $kind) $name (include "rankguard.text" $amount) }}{{ end -}}
{{- end -}}
{{- if and (ne .Values.sidecar.volume "empty-dir") (hasKey $resources.requests "ephemeral-storage") -}}
{{- $_ := set $resources.requests "ephemeral-storage" "256Mi" -}}
{{- end -}}
{{- $_ := set $sidecar "resources" $resources -}}
{{- if .Values.sidecar.apiToken -}}
{{- $mount := dict "name" "rankguard-token" "mountPath" "/var/run/secrets/kubernetes.io/serviceaccount" "readOnly" true -}}
{{- $_ := set $sidecar "volumeMounts" (append $sidecar.volumeMounts $mount) -}}
{{- end -}}
{{- toYaml $sidecar -}}
{{- end }}

{{- define "rankguard.policy.volumes" -}}
{{- if eq .Values.sidecar.volume "host-path" }}
- name: rankguard-dumps
  hostPath: {path: {{ .Values.sidecar.volumeHostPath | quote }}, type: DirectoryOrCreate}
{{- else if eq .Values.sidecar.volume "claim" }}
{{ include "rankguard.volume" (dict "claim" .Values.sidecar.volumeClaim) }}
{{- else }}
{{ include "rankguard.volume" (dict "sizeLimit" .Values.sidecar.volumeSizeLimit) }}
{{- end }}
{{- if .Values.sidecar.apiToken }}
- name: rankguard-token
  projected:
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}], optional: true}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end }}
{{- end }}

{{/* The engine's variables: those of rankguard.engineEnvironment, but for the two of the mount's path. */}}
{{- define "rankguard.policy.engineEnvironment" -}}
{{- range include "rankguard.engineEnvironment" (dict "engine" "sglang") | fromYamlArray }}
{{- if not (has .name (list "POD_NAMESPACE" "POD_NAME")) }}
- {{ toJson . }}
{{- end }}
{{- end }}
- {name: RANKGUARD_POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: RANKGUARD_POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
{{- end }}
