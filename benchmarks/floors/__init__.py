"""The same durable steps, as barely as they can be taken: no retries, no leases, no metrics, no second try."""
