"""ExpertTransfer, the data plane: updates to the coordinator's disk, publications to the owners'.

Over gRPC and TLS, in chunks, resumable on both sides, with memory that does not grow with the file; docs/transfer.md
describes the protocol for other implementations.

    server = serve(policy, address=address, certificate_chain=chain, private_key=private_key)     # the coordinator
    with connect(address, authority) as channel:                                                  # an owner
        upload(channel, signed=signed, update=path, key=key, audience=audience, coordinator=public)
        fetch(channel, digest=digest, into=folder, key=key, audience=audience)
"""

from motet.protocols.transfer.access import AccessRequest, audience_of
from motet.protocols.transfer.channel import Patience, Progress, connect, probe
from motet.protocols.transfer.fetching import fetch, manifest_of
from motet.protocols.transfer.policy import TransferPolicy
from motet.protocols.transfer.publication import Bundle, PublishedFile, write_bundle
from motet.protocols.transfer.sending import UploadOutcome, upload, withdraw
from motet.protocols.transfer.server import serve

__all__ = [
    "AccessRequest",
    "Bundle",
    "Patience",
    "Progress",
    "PublishedFile",
    "TransferPolicy",
    "UploadOutcome",
    "audience_of",
    "connect",
    "fetch",
    "manifest_of",
    "probe",
    "serve",
    "upload",
    "withdraw",
    "write_bundle",
]
