"""Families of probes, one file each: inputs -> findings."""
