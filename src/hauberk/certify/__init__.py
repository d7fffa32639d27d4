"""Certificates: lower bounds of robustness that no attack can pass."""
