"""What every room stands on: torch and the standard library only, nothing of methods or attacks."""
