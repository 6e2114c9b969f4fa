"""The server: a composite behind an OpenAI-compatible API, each request with the experts that it names.

`engine` turns prompts into tokens, many sequences with different expert sets at once; `api` speaks HTTP; `hooks` are
where keys, accounts and withdrawals come in. Imports `motet.protocols`, `motet.moe` and `motet.coordinator`, never
`motet.client`.
"""
