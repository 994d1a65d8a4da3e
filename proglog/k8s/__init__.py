"""What Kubernetes asks of Proglog, and Proglog of Kubernetes."""
