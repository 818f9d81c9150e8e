"""The REST API, one noun a file: its shapes, and how they become the services' messages."""
