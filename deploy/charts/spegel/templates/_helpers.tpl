{{/* Parentheses as in (.Values.networkPolicy).enabled: `helm upgrade --reuse-values` brings the values of the older chart
alone, which may lack what this one has added.

Names and selector labels are those of the Go implementation's chart: a DaemonSet's selector cannot be changed,
and hosts.toml on the nodes and other people's manifests name the Services. */}}

{{- define "spegel.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "spegel.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "spegel.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "spegel.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "spegel.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "spegel.serviceAccountName" -}}
{{- default (include "spegel.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Labels that select pods of a component: list, context and component. */}}
{{- define "spegel.selectorLabels" -}}
{{- $root := first . -}}
app.kubernetes.io/component: {{ last . }}
app.kubernetes.io/name: {{ include "spegel.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
{{- end -}}

{{/* Labels of pods of a component: list, context and component. What selects them cannot be replaced by values. */}}
{{- define "spegel.podLabels" -}}
{{- merge (include "spegel.selectorLabels" . | fromYaml) (first .).Values.commonLabels | toYaml -}}
{{- end -}}

{{/* Labels of an object: list, context, component, and labels that values give to this object alone. */}}
{{- define "spegel.labels" -}}
{{- $root := first . -}}
{{- $own := include "spegel.selectorLabels" (list $root (index . 1)) | fromYaml -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- $_ := set $own "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- merge $own (index . 2 | default dict) $root.Values.commonLabels | toYaml -}}
{{- end -}}

{{- define "spegel.bootstrapDomain" -}}
{{ include "spegel.fullname" . }}-bootstrap.{{ include "spegel.namespace" . }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{- define "spegel.image" -}}
{{- $image := .Values.image -}}
{{- if eq (include "spegel.isGoImage" .) "true" -}}
{{- $image = dict "repository" "localhost/spegel" "tag" "" "digest" "" -}}
{{- end -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{/* A values file that spells out the Go chart's defaults (helm upgrade --reuse-values keeps them all) names the Go
implementation's image. It means "the default image"; this chart's flags are not all known to that program. */}}
{{- define "spegel.isGoImage" -}}
{{- eq .Values.image.repository "ghcr.io/spegel-org/spegel" -}}
{{- end -}}

{{/* The port on the node itself, or nothing. */}}
{{- define "spegel.hostPort" -}}
{{- $registry := .Values.service.registry -}}
{{- $port := int (default 0 $registry.hostPort) -}}
{{- /* One port cannot lead to both; behind nodePort the node's own mirror is found as well. */ -}}
{{- if and $port (ne $port (int $registry.nodePort)) (not $registry.usePreferSameNodeTrafficDistribution) -}}
{{- $port -}}
{{- end -}}
{{- end -}}

{{/* The node's directory with containerd's configuration, as far as it lies around its registry configuration. A directory
at the top of the file system holds more than that. */}}
{{- define "spegel.nodeConfig" -}}
{{- $path := clean .Values.spegel.containerdRegistryConfigPath -}}
{{- ternary (dir $path) $path (regexMatch "^/[^/]+/." (dir $path)) -}}
{{- end -}}

{{/* Whether the API server takes trafficDistribution: PreferSameNode. */}}
{{- define "spegel.prefersSameNode" -}}
{{- semverCompare ">=1.34-0" .Capabilities.KubeVersion.Version -}}
{{- end -}}

{{/* Security context of a container. Kubernetes refuses a privileged container that may not gain privileges. */}}
{{- define "spegel.securityContext" -}}
{{- $context := .Values.securityContext | default dict -}}
{{- $added := dig "capabilities" "add" list $context | default list -}}
{{- if or $context.privileged (has "SYS_ADMIN" $added) (has "CAP_SYS_ADMIN" $added) -}}
{{- $context = omit $context "allowPrivilegeEscalation" -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* What all pods have in common: the mirror and what cleans up after it run on the same nodes. */}}
{{- define "spegel.podSpec" -}}
# Nothing here talks to the API server.
automountServiceAccountToken: false
# Environment variables for each Service of the namespace would only be in the way of our own.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Image, security and resources of a container of ours. */}}
{{- define "spegel.container" -}}
image: {{ include "spegel.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with include "spegel.securityContext" . }}
securityContext:
  {{- . | nindent 2 }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
