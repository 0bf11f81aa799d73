"""The Helm chart against a real kube-apiserver: `make test-apiserver`."""
