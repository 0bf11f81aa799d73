"""The Helm chart, rendered and judged without a cluster."""
