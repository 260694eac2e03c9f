"""What every step on Kubernetes needs: the cluster's API as plain JSON, and what one may do there."""
