"""The protocol of the store (docs/protocol.md) as a model: concurrent actors over READ COMMITTED, with crashes."""
