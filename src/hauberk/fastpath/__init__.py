"""Optional speed: copies of a model that answer faster; everything works without it."""
