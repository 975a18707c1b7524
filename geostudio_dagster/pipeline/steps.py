"""The steps that users see on a task, by the process ids that GEOStudio's clients know."""

from __future__ import annotations

CONNECT = "url-connector"
PREDICT = "terratorch-inference"
POSTPROCESS = "postprocess-generic"
PROCESS = "generic-python-processor"
PUBLISH = "push-to-geoserver"
