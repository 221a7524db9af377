"""Findings -> table, JSON, figures and page."""
