"""KServe v2, as OVMS speaks it."""
