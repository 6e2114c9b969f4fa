"""What owners and coordinators must agree on: documents, digests, signatures, the ledger's chain, transfer.

Nothing here imports torch, `motet.client` or `motet.coordinator`.
"""
