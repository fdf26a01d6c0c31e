"""``python -m tests.security.relayed FOLDER``: somebody asks the host's name server from within a fabric, by the relay for that.

Prints a JSON object of what was seen. Run as root, or as an ordinary user.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from insula.host.holder import start_holder
from insula.networks import relay

_FIRST = 5301


def main(folder: Path) -> None:
    with start_holder(folder / "holder.sock", own_user=os.geteuid() != 0)[0] as holder:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.settimeout(60)
                server.bind(("127.0.0.1", 0))
                vars(relay)["_NAMES"] = str(server.getsockname()[1])
                relay._start(holder, "127.0.0.1", "udp", socket.SOCK_DGRAM, _FIRST)
                with holder.socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as asking:
                    asking.settimeout(60)
                    asking.sendto(b"who", ("127.0.0.1", _FIRST))
                    asked, peer = server.recvfrom(16)
                    server.sendto(b"you", peer)
                    answer = asking.recv(16)
            parent = int(Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[1])
            children = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
            (pid,) = (pid for pid in children if b"forward" in Path(f"/proc/{pid}/cmdline").read_bytes())
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
            seen = {key: status[key] for key in ("Seccomp", "NoNewPrivs", "CapEff", "NSpid")}
            print(json.dumps({"asked": asked.decode(), "answer": answer.decode(), **seen}))
        finally:
            holder.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
