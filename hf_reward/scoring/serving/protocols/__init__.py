"""Protocols of the server: one module of request bodies, answers and routes for each family of clients."""
