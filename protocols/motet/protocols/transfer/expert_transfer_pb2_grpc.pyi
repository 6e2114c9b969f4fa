# Written by hand: protoc makes no types for the gRPC half. Only what service.py and the client functions use.
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import grpc  # type: ignore[import-untyped]

from motet.protocols.transfer import expert_transfer_pb2 as pb2

Request = TypeVar("Request", contravariant=True)
Reply = TypeVar("Reply", covariant=True)
T = TypeVar("T")
U = TypeVar("U")

class Pending(Protocol[Reply]):
    def result(self, timeout: float | None = None) -> Reply: ...
    def cancel(self) -> bool: ...

class Stream(Iterator[T], Protocol[T]):
    def cancel(self) -> bool: ...

class UnaryUnary(Generic[T, U]):
    def __call__(self, request: T, timeout: float | None = None) -> U: ...

class UnaryStream(Generic[T, U]):
    def __call__(self, request: T, timeout: float | None = None) -> Stream[U]: ...

class StreamUnary(Generic[T, U]):
    def future(self, request_iterator: Iterator[T], timeout: float | None = None) -> Pending[U]: ...

class ExpertTransferStub:
    Nonce: UnaryUnary[pb2.NonceRequest, pb2.NonceReply]
    Begin: UnaryUnary[pb2.BeginRequest, pb2.BeginReply]
    Push: StreamUnary[pb2.Chunk, pb2.PushReply]
    Commit: UnaryUnary[pb2.CommitRequest, pb2.ReceiptReply]
    Fetch: UnaryStream[pb2.FetchRequest, pb2.Chunk]
    Withdraw: UnaryUnary[pb2.WithdrawRequest, pb2.ReceiptReply]
    def __init__(self, channel: grpc.Channel) -> None: ...

class ExpertTransferServicer: ...

def add_ExpertTransferServicer_to_server(servicer: ExpertTransferServicer, server: grpc.Server) -> None: ...  # noqa: N802
