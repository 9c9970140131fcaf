"""The log of every look at the reporting half: who decides rules by it would otherwise tune on it unnoticed."""

import datetime
from pathlib import Path

LOG = Path(__file__).parent / "looks.log"


def log(command: str, digest: str, configurations: int, note: str, file: Path = LOG) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with file.open("a") as stream:
        stream.write(f"{now}  rules {digest}  {configurations} configurations  {command}  {note}\n")
