"""Families of probes, one module each: inputs -> cases -> findings."""
