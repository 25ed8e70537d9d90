"""Embeddings, heads and versions of one project's model. Other packages enter through `training.api` only."""
