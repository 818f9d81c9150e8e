"""Webhooks: the lifecycle's facts, posted to a tenant's own endpoints."""
