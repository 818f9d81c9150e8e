"""The ``millrace`` command, and a thin client of the gateway's REST API."""
