"""Writes what follows from the chart's values and from the program: `values.schema.json` and `README.md`."""
