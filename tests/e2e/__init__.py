"""The Helm chart against real API servers and clusters."""
