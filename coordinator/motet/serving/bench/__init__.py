"""`motet bench serve`: the server against `generate`, one set against many, one request against sixteen."""
