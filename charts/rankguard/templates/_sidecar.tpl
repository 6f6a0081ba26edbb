{{/*
The sidecar in a chart of your own, with this chart among its dependencies and `webhook.enabled: false` for it. In your
pod: `shareProcessNamespace: true`, a `terminationGracePeriodSeconds` of 120 or more, and what the templates below give.
All take a dict; the keys that may be left out are in brackets.
*/}}

{{/*
The sidecar, under `initContainers` with `"native" true` (Kubernetes 1.29 and newer), else under `containers`:
  {{- include "rankguard.container" (dict "image" "rankguard:0.1.0" "native" true "gracePeriod" 120 "shm" "dshm") | nindent 4 }}
image; [native]; [pullPolicy]; [gracePeriod]: the pod's terminationGracePeriodSeconds; [shm]: the name of the volume that
the engine mounts at /dev/shm; [sizeLimit]: the dump volume's, 20Gi; [claim]: true where the volume is a claim, which has
no such limit; [settings]: any setting of `rankguard run` by its flag's name; [hookToken]: the name of a Secret whose key
`token` is asked for at the hook; [nvml]: true for the GPUs' state in each incident; [resources]
*/}}
{{- define "rankguard.container" -}}
{{- $settings := .settings | default dict -}}
- name: rankguard
  image: {{ required "rankguard.container: say which image, as in (dict \"image\" \"rankguard:0.1.0\")" .image | quote }}
  imagePullPolicy: {{ .pullPolicy | default "IfNotPresent" }}
  args: ["run"]
  {{- if .native }}
  restartPolicy: Always
  {{- end }}
  env:
    - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
    - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    {{- if not (or .claim (hasKey $settings "dump-volume-limit")) }}
    - {name: RANKGUARD_DUMP_VOLUME_LIMIT, value: {{ .sizeLimit | default "20Gi" | quote }}}
    {{- end }}
    {{- if and .gracePeriod (not (hasKey $settings "termination-grace-period")) }}
    - {name: RANKGUARD_TERMINATION_GRACE_PERIOD, value: {{ include "rankguard.text" .gracePeriod | quote }}}
    {{- end }}
    {{- with .hookToken }}
    - {name: RANKGUARD_HOOK_TOKEN, valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: token}}}
    {{- end }}
    {{- if .nvml }}
    - {name: NVIDIA_VISIBLE_DEVICES, value: all}
    - {name: NVIDIA_DRIVER_CAPABILITIES, value: utility}
    {{- end }}
    {{- range $name, $value := $settings }}
    - {name: RANKGUARD_{{ $name | upper | replace "-" "_" }}, value: {{ include "rankguard.text" $value | quote }}}
    {{- end }}
  ports:
    - {name: rankguard, containerPort: 21400}
  securityContext:
    runAsUser: 0
    runAsNonRoot: false
    readOnlyRootFilesystem: true
    allowPrivilegeEscalation: false
    capabilities: {drop: ["ALL"], add: ["SYS_PTRACE", "KILL", "DAC_OVERRIDE"]}
    seccompProfile: {type: RuntimeDefault}
  resources:
    {{- if .resources }}
    {{- toYaml .resources | nindent 4 }}
    {{- else }}
    requests: {cpu: 50m, memory: 128Mi, ephemeral-storage: 5Gi}
    limits: {memory: 192Mi}
    {{- end }}
  volumeMounts:
    - {name: rankguard-dumps, mountPath: /var/lib/rankguard, subPathExpr: $(POD_NAMESPACE)/$(POD_NAME)}
    {{- with .shm }}
    - {name: {{ . }}, mountPath: /dev/shm}
    {{- end }}
{{- end }}

{{/*
The volume for incidents, under `volumes`: {{- include "rankguard.volume" (dict "sizeLimit" "20Gi") | nindent 4 }}
[sizeLimit]; or [claim]: the name of a PersistentVolumeClaim, which pods can share
*/}}
{{- define "rankguard.volume" -}}
- name: rankguard-dumps
  {{- if .claim }}
  persistentVolumeClaim: {claimName: {{ .claim | quote }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .sizeLimit | default "20Gi" }}}
  {{- end }}
{{- end }}

{{/*
The engine container's hook: {{- include "rankguard.lifecycle" (dict) | nindent 6 }}
[token]: the token itself, since a header can't be taken from a Secret
*/}}
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

{{/*
The engine's environment, under its `env`: {{- include "rankguard.engineEnvironment" (dict "engine" "sglang") | nindent 8 }}
[engine]: `sglang` switches its own crash dump off. Needs `rankguard.engineMount`.
*/}}
{{- define "rankguard.engineEnvironment" -}}
{{- if eq (.engine | default "") "sglang" }}
- {name: SGLANG_PYSPY_DUMP_BEFORE_CRASH, value: "false"}
- {name: SGLANG_CUDA_COREDUMP_BEFORE_CRASH, value: "false"}
{{- end }}
- {name: SPT_NOENV, value: "1"}
- {name: TORCH_NCCL_TRACE_BUFFER_SIZE, value: "2000"}
- {name: TORCH_NCCL_DUMP_ON_TIMEOUT, value: "1"}
- {name: TORCH_NCCL_DEBUG_INFO_PIPE_FILE, value: /tmp/rankguard-fr-}
- {name: TORCH_NCCL_DEBUG_INFO_TEMP_FILE, value: /tmp/rankguard-dump-}
- {name: CUDA_ENABLE_USER_TRIGGERED_COREDUMP, value: "1"}
- {name: CUDA_COREDUMP_PIPE, value: /tmp/corepipe.cuda.%h.%p}
- {name: CUDA_COREDUMP_FILE, value: /var/lib/rankguard/engine/core.cuda.%h.%p.%t}
- name: CUDA_COREDUMP_GENERATION_FLAGS
  value: "skip_nonrelocated_elf_images,skip_global_memory,skip_shared_memory,skip_local_memory,\
    skip_constbank_memory,skip_abort"
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
{{- end }}

{{/* A value as text. Helm has numbers as floats, and a large one would be 2e+10. */}}
{{- define "rankguard.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end }}

{{/* Under the engine's `volumeMounts`, its part of the volume: {{- include "rankguard.engineMount" (dict) | nindent 8 }} */}}
{{- define "rankguard.engineMount" -}}
- name: rankguard-dumps
  mountPath: /var/lib/rankguard/engine
  subPathExpr: $(POD_NAMESPACE)/$(POD_NAME)/engine
{{- end }}
