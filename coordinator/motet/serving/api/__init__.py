"""The HTTP side: OpenAI's endpoints, experts beside them, errors in OpenAI's shape.

app = build_app(Service(composite, engine, name="demo"), hooks=Hooks())
"""
