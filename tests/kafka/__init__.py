"""A real Apache Kafka server for the integration suite: `make test-kafka`."""
