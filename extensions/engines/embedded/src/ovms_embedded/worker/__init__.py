"""A process that holds one graph's pipeline; the only place that imports OpenVINO."""
