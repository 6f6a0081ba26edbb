{{/* What the chart's own pods have in common; (dict "root" $ "of" .Values.webhook) where placement is asked for. */}}

{{- define "rankguard.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* As Pod Security's `restricted` asks for. */}}
{{- define "rankguard.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: ["ALL"]}
{{- end }}

{{/*
For what reads the evidence: folders in it belong to the sidecars' users, root and others, and are closed to all but
their owner. Root with this one capability opens them; `baseline` allows it.
*/}}
{{- define "rankguard.reader" -}}
runAsUser: 0
runAsNonRoot: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: ["ALL"], add: ["DAC_OVERRIDE"]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "rankguard.placement" -}}
{{- with .of.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
