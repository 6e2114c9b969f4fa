"""A composite served on this machine for the while of a conversation.

with local_server(Path("composite")) as url:
    ...
"""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from motet.serving.api.app import build_app
from motet.serving.api.service import Service
from motet.serving.engine.engine import Engine
from motet.serving.engine.loading import load_composite
from motet.serving.run import listening, web_server


@contextmanager
def local_server(directory: Path) -> Iterator[str]:
    """Serves a composite's folder on loopback, to whoever is on this machine; the address.

    Nothing is metered, terms are not looked at, and withdrawals are not watched: it is for whoever tries a composite.

    Raises AssemblyError when the folder holds no native composite.
    """
    composite = load_composite(directory)
    with closing(listening("127.0.0.1", 0)) as listener, Engine(composite, max_batch=2, queue=4) as engine:
        server = web_server(build_app(Service(composite, engine, directory.resolve().name.replace(":", "-"))), grace=2)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
