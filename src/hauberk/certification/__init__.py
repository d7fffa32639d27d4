"""Certificates: lower bounds of robust accuracy, which no attack can pass."""
