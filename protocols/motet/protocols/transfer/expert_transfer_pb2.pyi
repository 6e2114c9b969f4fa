from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class NonceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NonceReply(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    def __init__(self, nonce: _Optional[str] = ...) -> None: ...

class BeginRequest(_message.Message):
    __slots__ = ("access", "manifest")
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    access: bytes
    manifest: bytes
    def __init__(self, access: _Optional[bytes] = ..., manifest: _Optional[bytes] = ...) -> None: ...

class BeginReply(_message.Message):
    __slots__ = ("session", "offset", "receipt", "manifest")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    session: str
    offset: int
    receipt: bytes
    manifest: str
    def __init__(self, session: _Optional[str] = ..., offset: _Optional[int] = ..., receipt: _Optional[bytes] = ..., manifest: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("session", "offset", "data", "crc32")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    session: str
    offset: int
    data: bytes
    crc32: int
    def __init__(self, session: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32: _Optional[int] = ...) -> None: ...

class PushReply(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class ReceiptReply(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: bytes
    def __init__(self, receipt: _Optional[bytes] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("session", "name", "offset")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    session: str
    name: str
    offset: int
    def __init__(self, session: _Optional[str] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class WithdrawRequest(_message.Message):
    __slots__ = ("access", "withdrawal")
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWAL_FIELD_NUMBER: _ClassVar[int]
    access: bytes
    withdrawal: bytes
    def __init__(self, access: _Optional[bytes] = ..., withdrawal: _Optional[bytes] = ...) -> None: ...
