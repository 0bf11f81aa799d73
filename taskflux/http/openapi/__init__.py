"""The API's description (OpenAPI 3.1), made from the tables and models that validate; and its pages."""
