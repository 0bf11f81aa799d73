"""TaskFlux on a real cluster: kind where Docker is there, or an existing one that KUBECONFIG_E2E names. `make e2e`."""
