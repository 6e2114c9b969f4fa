"""A container's health check: exit code 0, or 1 and a line that says what is wrong.

python healthy.py superlink  HOME HOST:PORT   # answers over TLS, with a certificate of the federation's authority
python healthy.py data-plane HOME HOST:PORT   # the same for ExpertTransfer
python healthy.py supernode  HOME             # the SuperNode's process of this home lives
python healthy.py worker     HOME             # a worker holds this home's spool
"""

import http.client
import ssl
import sys
from pathlib import Path

SECONDS = 5.0


def superlink(home: Path, address: str) -> str | None:
    """What is wrong with the SuperLink, None if nothing is."""
    trust = ssl.create_default_context(cafile=home / "tls" / "ca.pem")
    connection = http.client.HTTPSConnection(address, timeout=SECONDS, context=trust)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{address} does not answer: {error}"
    finally:
        connection.close()
    return None if status == http.client.OK else f"{address} answers with {status}, wanted 200"


def data_plane(home: Path, address: str) -> str | None:
    """What is wrong with the data plane, None if nothing is."""
    from motet.protocols.errors import MotetError
    from motet.protocols.transfer.channel import connect, probe

    with connect(address, (home / "tls" / "ca.pem").read_bytes()) as channel:
        try:
            probe(channel, seconds=SECONDS)
        except MotetError as error:
            return str(error)
    return None


def supernode(home: Path) -> str | None:
    """What is wrong with the SuperNode, None if nothing is."""
    import psutil

    command = str(home / "flower" / "bin" / "flower-supernode")
    processes = psutil.process_iter(["cmdline", "status"])
    if any(
        command in (each.info["cmdline"] or ()) and each.info["status"] != psutil.STATUS_ZOMBIE for each in processes
    ):
        return None
    return f"no process runs {command}; it is restarted after a pause, the log says why it ended"


def worker(home: Path) -> str | None:
    """What is wrong with the worker, None if nothing is."""
    from motet.client.spool import Spool

    return None if Spool(home).worker_alive() else f"no worker holds the spool of {home}"


def main(arguments: list[str]) -> int | str:
    """Run the check that the arguments name."""
    checks = {"superlink": superlink, "data-plane": data_plane, "supernode": supernode, "worker": worker}
    name, home, *address = arguments
    return checks[name](Path(home), *address) or 0  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
