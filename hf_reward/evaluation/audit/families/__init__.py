"""Families of probes, one file each: material -> findings."""
