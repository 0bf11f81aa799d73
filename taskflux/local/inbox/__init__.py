"""The local inbox: accepts mail over SMTP and SMS as MSG91's Flow API does, forwards nothing, and shows them."""
