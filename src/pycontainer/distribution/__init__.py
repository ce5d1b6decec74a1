"""Images in transit: layers, archives and registries."""
