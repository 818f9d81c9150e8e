"""Graders: what an answer of a model is worth, as the OpenAI API describes them.

The service runs one at a time (``graders_api.py``), a reinforcement job thousands. Nothing here
imports torch.

Reference: https://platform.openai.com/docs/guides/graders
"""
