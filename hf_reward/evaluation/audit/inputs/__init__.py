"""The texts that the probes use: the user's rows, bundled items and synthetic rows."""
