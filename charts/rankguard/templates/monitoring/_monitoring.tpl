{{/*
"true" where an object of `monitoring` is to be rendered, "" where not. (dict "root" $ "enabled" VALUE "kind" KIND)
`auto`: where the cluster knows the Prometheus operator's objects, and pods get their sidecar by this release. Those who
only use the templates get no object that they did not ask for.
*/}}
{{- define "rankguard.monitoring.wanted" -}}
{{- if eq (toString .enabled) "auto" -}}
{{- $has := or (.root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind)) (.root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1") -}}
{{- if and $has (ne (include "rankguard.injection" .root) "none") -}}true{{- end -}}
{{- else if .enabled -}}true{{- end -}}
{{- end }}

{{/* Labels by which a Prometheus finds its objects, and the chart's own. (dict "root" $ "labels" MAP) */}}
{{- define "rankguard.monitoring.labels" -}}
{{- $own := include "rankguard.labels" (dict "root" .root "component" "monitoring") | fromYaml -}}
{{- mergeOverwrite $own (deepCopy .root.Values.monitoring.labels) (deepCopy .labels) | toYaml -}}
{{- end }}

{{/* How often, and how long: (.Values.monitoring.podMonitor) */}}
{{- define "rankguard.monitoring.scrape" -}}
{{- with .interval }}
interval: {{ . }}
{{- end }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
