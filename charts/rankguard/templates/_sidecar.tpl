{{/*
The sidecar container. In your pod: `shareProcessNamespace: true`, `terminationGracePeriodSeconds: 120`, and under
`containers` (with `sizeLimit` where the volume is an emptyDir with another limit than 20Gi)
  {{- include "rankguard.container" (dict "image" "rankguard:0.1.0" "settings" (dict "on-rank-death" "kill")) | nindent 4 }}
*/}}
{{- define "rankguard.container" -}}
- name: rankguard
  image: {{ required "rankguard.container: image" .image | quote }}
  args: ["run"]
  env:
    - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
    - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    {{- if not (hasKey (.settings | default dict) "dump-volume-limit") }}
    - {name: RANKGUARD_DUMP_VOLUME_LIMIT, value: {{ .sizeLimit | default "20Gi" | quote }}}
    {{- end }}
    {{- range $name, $value := .settings }}
    - {name: RANKGUARD_{{ $name | upper | replace "-" "_" }}, value: {{ $value | quote }}}
    {{- end }}
  ports:
    - {name: rankguard, containerPort: 21400}
  securityContext:
    runAsUser: 0
    runAsNonRoot: false
    readOnlyRootFilesystem: true
    allowPrivilegeEscalation: false
    capabilities: {drop: ["ALL"], add: ["SYS_PTRACE", "KILL", "DAC_OVERRIDE"]}
  resources:
    requests: {cpu: 50m, memory: 128Mi}
    limits: {memory: 192Mi}
  volumeMounts:
    - {name: rankguard-dumps, mountPath: /var/lib/rankguard, subPathExpr: $(POD_NAMESPACE)/$(POD_NAME)}
{{- end }}

{{/* The volume for incidents, under `volumes`: {{- include "rankguard.volume" (dict "sizeLimit" "20Gi") | nindent 4 }} */}}
{{- define "rankguard.volume" -}}
- name: rankguard-dumps
  emptyDir: {sizeLimit: {{ .sizeLimit | default "20Gi" }}}
{{- end }}

{{/* The engine container's hook: {{- include "rankguard.lifecycle" (dict "token" "…") | nindent 6 }}; without a token: (dict) */}}
{{- define "rankguard.lifecycle" -}}
lifecycle:
  preStop:
    httpGet:
      path: /hooks/prestop
      port: 21400
      {{- with .token }}
      httpHeaders: [{name: X-Rankguard-Token, value: {{ . | quote }}}]
      {{- end }}
{{- end }}
