"""Going back to an earlier image with Docker: what to create, how to swap, many at once, or through Compose."""
