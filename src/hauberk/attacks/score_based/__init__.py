"""Attacks that see only what the model says, and no gradient."""
