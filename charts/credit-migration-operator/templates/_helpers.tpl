{{/* Fixed names; see the head of values.yaml. The ClusterRoles of the runner and the policies are also named to the operator by its flags. */}}
{{- define "operator.name" -}}credit-migration-operator{{- end }}
{{- define "operator.runnerClusterRole" -}}credit-migration-runner{{- end }}
{{- define "operator.runnerLogsClusterRole" -}}credit-migration-runner-logs{{- end }}
{{- define "operator.decisionPolicy" -}}migrationdecisions.creditmigration.io{{- end }}
{{- define "operator.migrationPolicy" -}}creditmigrations.creditmigration.io{{- end }}
{{- define "operator.runPolicy" -}}migrationruns.creditmigration.io{{- end }}
{{- define "operator.runnerPolicy" -}}runners.creditmigration.io{{- end }}
{{- define "operator.sqlPolicy" -}}sql.creditmigration.io{{- end }}

{{/* The operator's user name, as the API server knows it. */}}
{{- define "operator.userName" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "operator.name" . }}
{{- end }}

{{/* Labels that never change: a Deployment's selector is immutable. */}}
{{- define "operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "operator.name" . }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "operator.commonLabels" -}}
app.kubernetes.io/name: {{ include "operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: credit-migration
{{- end }}

{{- define "operator.labels" -}}
{{ include "operator.commonLabels" . }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "operator.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What every container gets: enough for Pod Security `restricted`. */}}
{{- define "operator.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "operator.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}
