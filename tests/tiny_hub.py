"""A hub of models and of data sets in a folder, behind the addresses that huggingface_hub asks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"  # of the only commit
REVISIONS = ("main", "v1", SHA)


@contextmanager
def hub_of(folder: Path) -> Iterator[str]:
    """Serve models below a folder, `OWNER/NAME/FILE`, and data sets, `datasets/OWNER/NAME/FILE`; the address.

    Without a token nothing is taken.
    """

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def say(self, content: object, status: int = 200) -> None:
            self.answer(status, json.dumps(content).encode(), Content_Type="application/json")

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "Authorization" not in self.headers:
                self.say({"error": "Invalid username or password."}, 401)
            elif self.path == "/api/validate-yaml":
                self.say({"errors": [], "warnings": []})
            elif self.path == "/api/repos/create":
                asked = json.loads(content)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                (folder / name).mkdir(parents=True, exist_ok=True)
                self.say({"url": f"{self.address()}/{name}", "name": name})
            elif found := re.fullmatch(rf"/api/(datasets/[^/]+/[^/]+)/paths-info/{SHA}", self.path):
                asked = json.loads(content)["paths"]
                self.say([each for each in self.listed(folder / found[1]) if each["path"] in asked])
            elif self.path.endswith("/preupload/main"):
                asked = json.loads(content)["files"]
                self.say(
                    {
                        "files": [
                            {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in asked
                        ]
                    }
                )
            elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        place = folder / found[1] / line["value"]["path"]
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(base64.b64decode(line["value"]["content"]))
                self.say({"commitUrl": f"{self.address()}/{found[1]}/commit/{SHA}", "commitOid": SHA})
            else:
                self.say({"error": self.path}, 404)

        def listed(self, place: Path) -> list[dict[str, Any]]:
            """Files and folders below a place, as the hub tells them."""
            return [
                {
                    "type": "file" if path.is_file() else "directory",
                    "path": path.relative_to(place).as_posix(),
                    "size": path.stat().st_size if path.is_file() else 0,
                    "oid": SHA,
                }
                for path in sorted(place.rglob("*"))
            ]

        def answer_of_data_set(self, name: str, asked: str) -> None:
            place = folder / name
            if not place.is_dir():
                self.answer(404, X_Error_Code="RepoNotFound")
            elif (which := re.match(r"/(?:resolve|revision|tree)/([^/?]+)", asked)) and which[1] not in REVISIONS:
                self.answer(404, X_Error_Code="RevisionNotFound")
            elif asked.startswith("/resolve/"):
                file = place / asked.split("/", 3)[3]
                if file.is_file():
                    etag = f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"'
                    self.answer(200, file.read_bytes(), ETag=etag, X_Repo_Commit=SHA)
                else:
                    self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=SHA)
            elif asked.startswith("/tree/"):
                below = asked.partition("?")[0].split("/", 3)[3:]
                self.say([each for each in self.listed(place) if each["path"].startswith(tuple(below) or "")])
            else:
                names = [{"rfilename": each["path"]} for each in self.listed(place) if each["type"] == "file"]
                self.say({"id": name.removeprefix("datasets/"), "sha": SHA, "siblings": names})

        def do_GET(self) -> None:
            if data := re.fullmatch(r"(?:/api)?/(datasets/[^/]+/[^/?]+)(.*)", self.path):
                self.answer_of_data_set(data[1], data[2])
                return
            about = re.fullmatch(rf"/api/models/([^/]+/[^/?]+)(/revision/main|/tree/{SHA})?(\?.*)?", self.path)
            file = re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{SHA}/(.+)", self.path)
            if about is not None and (folder / about[1]).is_dir():
                place = folder / about[1]
                files = {
                    path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()
                }
                if (about[2] or "").startswith("/tree"):
                    self.say(
                        [
                            {"type": "file", "path": name, "size": path.stat().st_size, "oid": SHA}
                            for name, path in files.items()
                        ]
                    )
                else:
                    self.say({"id": about[1], "sha": SHA, "siblings": [{"rfilename": name} for name in files]})
            elif file is not None and (folder / file[1] / file[2]).is_file():
                body = (folder / file[1] / file[2]).read_bytes()
                self.answer(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=SHA)
            else:
                self.answer(404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET  # noqa: N815

        def address(self) -> str:
            return f"http://{self.headers['Host']}"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
