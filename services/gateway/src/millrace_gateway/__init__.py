"""The public API: authenticate, admit, route, stream; and the lifecycle in OpenAI's shapes."""
