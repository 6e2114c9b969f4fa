"""The owner's Flower ClientApp: writes jobs to the spool and tells how they stand, within seconds.

    flower-supernode --node-config 'motet-home="/srv/motet" motet-owner="ed25519:…"' …

Flower starts a process of it for every message, so it imports neither torch nor transformers. What it may do is in
`motet.client.desk`; an error reaches the coordinator as the reason of a failed message, of which it is told the kind.
"""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from motet.client.desk import Desk
from motet.client.disclosure import disclosing
from motet.protocols.control import EvaluateRequest, TrainRequest
from motet.protocols.errors import ConfigurationError
from motet.protocols.flower_records import pack, unpack
from motet.protocols.jobs import StatusQuery

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer a `StatusQuery` with an `OwnerStatus`, and with an update that was offered inline."""
    with disclosing():
        status, inline = _desk(context).answer(unpack(message.content, StatusQuery))
        return Message(pack(status, inline), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Queue the training that a `TrainRequest` asks for; the answer is an `OwnerStatus`."""
    with disclosing():
        return Message(pack(_desk(context).submit(unpack(message.content, TrainRequest))), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Queue the scoring that an `EvaluateRequest` asks for; the answer is an `OwnerStatus`."""
    with disclosing():
        return Message(pack(_desk(context).submit(unpack(message.content, EvaluateRequest))), reply_to=message)


def _desk(context: Context) -> Desk:
    home, owner = context.node_config.get("motet-home"), context.node_config.get("motet-owner")
    if not isinstance(home, str) or not isinstance(owner, str):
        raise ConfigurationError(
            "saw no motet-home and motet-owner in --node-config; start the node with `motet work supernode`"
        )
    return Desk.open(Path(home), owner)
