"""What was used: gate mass by expert, on disk before an answer is finished, told to tenants and signed for owners.

Gate mass is usage, not value: it says how much an expert took part, not what that was worth, and must not alone set a
price.

    with UsageStore(state / "usage.sqlite") as store:
        Hooks(meter=books.keep, ready=books.require_open)                         # books = Books(store, ids)
        statement_of(store, key, owner="ed25519:...", since=None, until=None)     # signed

`store` keeps and adds up; `books` lets no answer begin while that fails, and has a `reserve` on the disk for what is
owed meanwhile; `statement` is the signed document, `endpoint` is /v1/usage.
"""
