"""What is served, and why: models, versions, deployments, rollouts, lineage."""
