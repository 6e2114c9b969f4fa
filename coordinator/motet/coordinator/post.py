"""The ServerApp's letters: one at a time to each owner, one thread waiting for each answer.

    post = Post(grid)
    post.send(owner, node, job, Order.REQUEST, TrainRequest(charter=digest))
    for answer in post.heard(timeout=0.5): ...

`Grid.pull_messages` blocks while a sender is still uploading, so every answer is pulled by its own thread, one message
id a call. A thread ends with an answer, with Flower's error, or when the message has expired.
"""

import logging
import queue
import threading
import time
from collections.abc import Mapping

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from flwr.app import Message
from flwr.serverapp import Grid

from motet.coordinator.gather import NO_ANSWER, Answer, Order
from motet.protocols.control import OwnerStatus
from motet.protocols.errors import DocumentError
from motet.protocols.flower_records import pack, unpack, unpack_inline
from motet.protocols.jobs import Request, StatusQuery, kind_of

logger = logging.getLogger(__name__)

EXPIRY_SECONDS = 600.0
"""How long a message and its answer may take, an inline update included."""
PULL_SECONDS = (0.4, 1.0)
"""The pause between two looks for an answer, at first and at last: a SuperLink serves every look of every letter."""


class Post:
    """Sends documents to nodes and collects their answers."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._answers: queue.Queue[Answer] = queue.Queue()

    def nodes(self, flower_keys: Mapping[str, str]) -> dict[str, int]:
        """Owner -> node id, of those connected now; the id is good for the next message only.

        Args:
            flower_keys: owner -> the public key (OpenSSH line) that the owner's node authenticates with.
        """
        owners = {_spki(line): owner for owner, line in flower_keys.items()}
        return {owners[node.public_key]: node.node_id for node in self._grid.get_nodes() if node.public_key in owners}

    def send(
        self,
        owner: str,
        node: int,
        job: str,
        order: Order,
        document: Request | StatusQuery,
    ) -> None:
        """Send a document; `heard` gives the answer, or why there is none, exactly once."""
        message_type = "query" if isinstance(document, StatusQuery) else kind_of(document)
        message = Message(pack(document), dst_node_id=node, message_type=message_type, ttl=EXPIRY_SECONDS)
        (message_id,) = self._grid.push_messages([message])
        blank = Answer(owner=owner, job=job, order=order)
        threading.Thread(target=self._await, args=(message_id, blank), daemon=True).start()

    def heard(self, timeout: float) -> list[Answer]:
        """The answers since the last call; waits up to `timeout` seconds for the first."""
        answers: list[Answer] = []
        try:
            answers.append(self._answers.get(timeout=timeout))
            while True:
                answers.append(self._answers.get_nowait())
        except queue.Empty:
            return answers

    def _await(self, message_id: str, blank: Answer) -> None:
        try:
            reply = self._pull(message_id)
            answer = _read(reply, blank) if reply is not None else _failed(blank, NO_ANSWER, "no answer in time")
        except Exception as error:  # whatever it is, the loop must hear of it
            logger.debug("pulling an answer failed", exc_info=True)
            answer = _failed(blank, NO_ANSWER, f"{type(error).__name__}: {error}")
        self._answers.put(answer)

    def _pull(self, message_id: str) -> Message | None:
        deadline, pause = time.monotonic() + EXPIRY_SECONDS + 10, PULL_SECONDS[0]
        while time.monotonic() < deadline:
            for message in self._grid.pull_messages([message_id]):
                return message
            time.sleep(pause)
            pause = min(1.2 * pause, PULL_SECONDS[1])
        return None


def _read(reply: Message, blank: Answer) -> Answer:
    if reply.has_error():
        return _failed(blank, reply.error.code, reply.error.reason or "no reason given")
    try:
        status, inline = unpack(reply.content, OwnerStatus), unpack_inline(reply.content)
    except DocumentError as error:
        return _failed(blank, NO_ANSWER, str(error))
    if status.owner != blank.owner:
        return _failed(blank, NO_ANSWER, f"the node of {blank.owner} speaks for {status.owner}")
    return Answer(owner=blank.owner, job=blank.job, order=blank.order, status=status, inline=inline)


def _failed(blank: Answer, code: int, reason: str) -> Answer:
    return Answer(owner=blank.owner, job=blank.job, order=blank.order, code=code, reason=reason)


def _spki(line: str) -> bytes:
    """An OpenSSH public key as Flower shows a node's: PEM, SubjectPublicKeyInfo."""
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DocumentError(f"an enrolled owner's Flower key is not an OpenSSH public key: {error}") from error
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
