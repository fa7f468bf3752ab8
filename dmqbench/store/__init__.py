"""The ground: files that are whole or absent, manifests, artifacts, downloads."""
