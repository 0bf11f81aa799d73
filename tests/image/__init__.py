"""The image, built for real and run as the chart runs it."""
