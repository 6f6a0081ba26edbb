{{/*
Names. All of a release's objects begin with `rankguard.fullname`; what is added to it has at most 19 characters, so
that no name goes over 63. A name that is cut ends in a part of its hash: two long ones must not become the same.
*/}}
{{- define "rankguard.cut" -}}
{{- if gt (len .name) (int .most) -}}
{{- printf "%s-%s" (.name | trunc (sub .most 9 | int) | trimSuffix "-") (.name | sha256sum | trunc 8) -}}
{{- else -}}
{{- .name -}}
{{- end -}}
{{- end }}

{{- define "rankguard.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $own := .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) -}}
{{- include "rankguard.cut" (dict "name" $own "most" 44) -}}
{{- end }}

{{/*
For what belongs to no namespace, or stands in another's: with the release's namespace in it, since two releases of
the same name may live in two namespaces.
*/}}
{{- define "rankguard.clusterName" -}}
{{- include "rankguard.cut" (dict "name" (printf "%s-%s" (include "rankguard.fullname" .) .Release.Namespace) "most" 44) -}}
{{- end }}

{{/* What selects pods: never changed, since a Deployment's selector can't be. (dict "root" $ "component" "webhook") */}}
{{- define "rankguard.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Values.nameOverride | default .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "rankguard.labels" -}}
{{- include "rankguard.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The image: a digest beats a tag. */}}
{{- define "rankguard.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{/* What is asked for: webhook, policy or none. `webhook.enabled=false` is the same as `injection=none`. */}}
{{- define "rankguard.injection" -}}
{{- if and (eq .Values.injection "webhook") (not .Values.webhook.enabled) -}}none{{- else -}}{{- .Values.injection -}}{{- end -}}
{{- end }}
