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

{{/* What a quantity is worth, as text that compares as a float: (include "rankguard.amount" "5Gi" | float64). */}}
{{- define "rankguard.amount" -}}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 -}}
{{- $digits := regexFind "^[0-9.]+" (toString .) -}}
{{- $unit := trimPrefix $digits (toString .) -}}
{{- if hasKey $units $unit }}{{ mulf (float64 $digits) (index $units $unit) }}{{ else }}{{ float64 (toString .) }}{{ end -}}
{{- end }}

{{/*
The sidecar's room on the node, as sidecar/inject/resources.py has it: `request`, where one is asked for, never more than
the volume, and `limit`, for a pod in which somebody has one. A request above its limit would have the pod refused.
(dict "root" $ "inPod" true), where the evidence is in an emptyDir
*/}}
{{- define "rankguard.policy.storage" -}}
{{- $resources := .root.Values.sidecar.resources -}}
{{- $limit := ternary .root.Values.sidecar.volumeSizeLimit "256Mi" .inPod | toString -}}
{{- $request := index ($resources.requests | default dict) "ephemeral-storage" | default "" | toString -}}
{{- if $request -}}
{{- if gt (include "rankguard.amount" $request | float64) (include "rankguard.amount" $limit | float64) }}{{ $request = $limit }}{{ end -}}
{{- end -}}
{{- with index ($resources.limits | default dict) "ephemeral-storage" -}}
{{- if gt (include "rankguard.amount" . | float64) (include "rankguard.amount" $limit | float64) }}{{ $limit = toString . }}{{ end -}}
{{- end -}}
request: {{ $request | quote }}
limit: {{ $limit | quote }}
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
{{- range $name, $amount := $amounts -}}
{{- if ne $name "ephemeral-storage" }}{{ $_ := set (index $resources $kind) $name (include "rankguard.text" $amount) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- with (include "rankguard.policy.storage" (dict "root" . "inPod" (eq .Values.sidecar.volume "empty-dir")) | fromYaml).request -}}
{{- $_ := set $resources.requests "ephemeral-storage" . -}}
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
