"""The Grafana dashboards as code: `python -m charts.generate.dashboards` writes them into the chart."""
