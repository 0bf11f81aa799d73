"""The page at `/status`: the overview's plots, for who has no Grafana."""
