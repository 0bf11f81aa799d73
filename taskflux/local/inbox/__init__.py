"""The local inbox: takes mails over SMTP and SMS as MSG91's Flow API does, sends nothing on, and shows them."""
