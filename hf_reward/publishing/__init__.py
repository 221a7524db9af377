"""Verify, export, average, import, describe and push a trained model."""
