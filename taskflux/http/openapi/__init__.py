"""The API's description (OpenAPI 3.1), made from the tables and models that validate; and its pages.

`model` is what an operation is, `schemas` and `examples` are what it speaks of, `tasks` and `dead_letters` list the
operations, `document` puts them together, `pages` serves it. A process with paths of its own gives its own list.
"""
