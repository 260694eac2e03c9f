"""Autoscalers held still while a release goes back, and let go again exactly as they were."""
