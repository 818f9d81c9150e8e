"""What every Millrace service shares: durability, transport, telemetry and jobs."""
