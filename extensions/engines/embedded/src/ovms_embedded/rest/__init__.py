"""REST as OVMS speaks it."""
