"""REST as OVMS speaks it (spec parts D and E)."""
