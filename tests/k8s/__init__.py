"""What stands around the chart: the development cluster, its dependencies, docker-compose.yaml, the CI workflow."""
