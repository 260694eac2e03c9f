"""Going back to an earlier image on Kubernetes: which workloads, who owns them, patch, wait, read back what runs."""
