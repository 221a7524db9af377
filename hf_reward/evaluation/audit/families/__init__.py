"""Families of related probes, one module each: each makes cases to score and findings from their rewards."""
