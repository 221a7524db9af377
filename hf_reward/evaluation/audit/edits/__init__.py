"""Edits of a response (padding, formatting, noise), and the text features that they change."""
