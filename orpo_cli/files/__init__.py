"""Bytes on disk: writes that are whole or not there, manifests, text from others, the place of the cache."""
