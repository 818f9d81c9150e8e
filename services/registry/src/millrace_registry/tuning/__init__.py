"""The search for the settings with which an endpoint answers most requests in time."""
