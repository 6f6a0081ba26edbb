{{/* The defaults of injection, as `rankguard webhook --config` and `rankguard inject --config` read them. */}}
{{- define "rankguard.options" -}}
{{- $sidecar := .Values.sidecar -}}
{{- $settings := dict -}}
{{- if $sidecar.annotatePod }}{{ $_ := set $settings "kubernetes-annotation" true }}{{ end -}}
{{- $settings = merge (dict) $sidecar.settings $settings -}}
image: {{ $sidecar.image | default (include "rankguard.image" .) | quote }}
image-pull-policy: {{ .Values.image.pullPolicy }}
form: {{ $sidecar.form }}
rights: {{ $sidecar.rights }}
volume: {{ $sidecar.volume }}
volume-size-limit: {{ $sidecar.volumeSizeLimit | quote }}
{{- with $sidecar.volumeClaim }}
volume-claim: {{ . | quote }}
{{- end }}
{{- with $sidecar.volumeHostPath }}
volume-host-path: {{ . | quote }}
{{- end }}
liveness: {{ $sidecar.liveness }}
nvml: {{ $sidecar.nvml }}
engine-environment: {{ $sidecar.engineEnvironment }}
api-token: {{ $sidecar.apiToken }}
{{- with include "rankguard.fleetSwitch" . }}
fleet-switch: {{ . | quote }}
{{- end }}
resources:
  {{- toYaml $sidecar.resources | nindent 2 }}
{{- with $settings }}
settings:
  {{- range $name, $value := . }}
  {{ $name }}: {{ toJson $value }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The fleet switch by namespace and name; empty where nobody may read it. */}}
{{- define "rankguard.fleetSwitch" -}}
{{- if and .Values.fleetSwitch.enabled .Values.sidecar.apiToken .Values.sidecar.namespaces -}}
{{- printf "%s/%s-fleet" .Release.Namespace (include "rankguard.fullname" .) -}}
{{- end -}}
{{- end }}

{{/* What values say that contradicts itself: one clear line each, since a schema can't say why. */}}
{{- define "rankguard.check" -}}
{{- $v := .Values -}}
{{- $after := index $v.sidecar.settings "after-kill" | default "none" | toString -}}
{{- if and (eq $v.sidecar.volume "claim") (not $v.sidecar.volumeClaim) -}}
{{- fail "sidecar.volume is `claim`: name the PersistentVolumeClaim in sidecar.volumeClaim" -}}
{{- end -}}
{{- if and (eq $v.sidecar.volume "host-path") (not $v.sidecar.volumeHostPath) -}}
{{- fail "sidecar.volume is `host-path`: say which folder of the nodes in sidecar.volumeHostPath" -}}
{{- end -}}
{{- if and (eq $after "delete-pod") (not $v.sidecar.deletePod) -}}
{{- fail "sidecar.settings.after-kill is `delete-pod`: that right is given by sidecar.deletePod=true" -}}
{{- end -}}
{{- if and (or $v.sidecar.annotatePod $v.sidecar.deletePod) (not $v.sidecar.namespaces) -}}
{{- fail "sidecar.annotatePod and sidecar.deletePod are rights in namespaces: list them in sidecar.namespaces" -}}
{{- end -}}
{{- if and (include "rankguard.bound" .) (not (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version)) -}}
{{- fail (printf "sidecar.annotatePod, deletePod, aggregateEvents and bindTokens need a ValidatingAdmissionPolicy: Kubernetes 1.30 or newer, this is %s" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and (eq $v.injection "policy") (not (semverCompare ">=1.36.0-0" .Capabilities.KubeVersion.Version)) -}}
{{- fail (printf "injection is `policy`, which needs Kubernetes 1.36 or newer, this is %s: take injection=webhook" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and (eq $v.injection "policy") (eq $v.sidecar.form "ordinary") -}}
{{- fail "sidecar.form is `ordinary`: injection=policy makes native sidecars only, take injection=webhook" -}}
{{- end -}}
{{- if and (eq $v.injection "policy") (or (hasKey $v.sidecar.settings "listen") (hasKey $v.sidecar.settings "dump-dir")) -}}
{{- fail "sidecar.settings has listen or dump-dir: injection=policy knows one port and one folder, take injection=webhook" -}}
{{- end -}}
{{- if and (eq $v.webhook.certificate.mode "provided") (not (and $v.webhook.certificate.secretName $v.webhook.certificate.caBundle)) -}}
{{- fail "webhook.certificate.mode is `provided`: name the TLS Secret in secretName and give its CA, base64 of PEM, in caBundle" -}}
{{- end -}}
{{- if and (or $v.viewer.enabled $v.prune.enabled) (not (include "rankguard.dumpsClaim" .)) -}}
{{- fail "viewer and prune need the volume with the evidence: name its claim in dumps.claim" -}}
{{- end -}}
{{- if and $v.viewer.enabled (or $v.viewer.write $v.viewer.service.enabled) (not $v.viewer.token.secretName) -}}
{{- fail "viewer.write and viewer.service need a token: name its Secret in viewer.token.secretName" -}}
{{- end -}}
{{- end }}

{{/* Whether a sidecar's token is bound to its own pod. */}}
{{- define "rankguard.bound" -}}
{{- $sidecar := .Values.sidecar -}}
{{- if and $sidecar.namespaces (or $sidecar.bindTokens $sidecar.annotatePod $sidecar.deletePod $sidecar.aggregateEvents) -}}true{{- end -}}
{{- end }}

{{- define "rankguard.dumpsClaim" -}}
{{- .Values.dumps.claim | default (ternary .Values.sidecar.volumeClaim "" (eq .Values.sidecar.volume "claim")) -}}
{{- end }}

{{- define "rankguard.dumpsNamespace" -}}
{{- .Values.dumps.namespace | default .Release.Namespace -}}
{{- end }}

{{/* What viewer and prune are named: in another namespace than the release's with that in it. */}}
{{- define "rankguard.dumpsName" -}}
{{- if eq (include "rankguard.dumpsNamespace" .) .Release.Namespace -}}
{{- include "rankguard.fullname" . -}}
{{- else -}}
{{- include "rankguard.clusterName" . -}}
{{- end -}}
{{- end }}
