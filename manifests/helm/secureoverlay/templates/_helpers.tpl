{{/* The text of one of the files of manifests/. */}}
{{- define "secureoverlay.file" -}}
{{- $text := .root.Files.Get (printf "manifests/%s" .name) -}}
{{- if not $text -}}
{{- fail (printf "manifests/%s is not in the chart: it is a symbolic link in the repository, which this copy lacks. Use what `helm package` made of a checkout." .name) -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{/* repository:tag@digest */}}
{{- define "secureoverlay.image" -}}
{{- .image.repository }}:{{ .image.tag | default .chart.AppVersion }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{/* The objects of a file, with labels. */}}
{{- define "secureoverlay.labelled" -}}
{{- range $document := regexSplit "(?m)^---$" (include "secureoverlay.file" .) -1 }}
{{- $object := fromYaml $document }}
{{- if $object.kind }}
{{- with $.labels }}{{ $_ := set $object.metadata "labels" (merge (deepCopy .) ($object.metadata.labels | default dict)) }}{{ end }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
{{- end -}}
