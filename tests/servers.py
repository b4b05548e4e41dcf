"""Servers on this machine: of files, of a bucket behind https, and a hub as far as
`huggingface_hub` asks it for models.

python tests/servers.py FOLDER [--port=8000]    # FOLDER/owner/name/files
HF_ENDPOINT=http://127.0.0.1:8000 python -m efficientnet_advprop.inspect_checkpoint hf://owner/name
"""

import argparse
import base64
import contextlib
import functools
import hashlib
import http.server
import json
import pathlib
import re
import ssl
import subprocess
import threading


@contextlib.contextmanager
def serve(body, status=200, announced=None, content_type="application/octet-stream"):
    """Answers with a body, or with that of the suffix that a path ends in; yields an address and
    the requests so far.
    """
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            answer = body
            if isinstance(body, dict):
                answer = next(part for suffix, part in body.items() if self.path.endswith(suffix))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(announced or len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/advprop/efficientnet-b0.tar.gz", requests
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def proxy_of(folder: pathlib.Path, host: str):
    """A proxy that answers for https://HOST/path by the files of a folder; yields the variables
    that a shell behind such a proxy sets.
    """
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2".split()
    named = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *named, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_CONNECT(self):
            self.send_response(200)
            self.end_headers()
            self.connection = context.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = (self.connection.makefile(mode) for mode in ("rb", "wb"))
            self.close_connection = False  # the request proper follows

        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {
            "https_proxy": f"http://127.0.0.1:{server.server_port}",
            "no_proxy": "127.0.0.1,localhost",
            "SSL_CERT_FILE": str(certificate),
        }
    finally:
        server.shutdown()
        server.server_close()


_COMMIT = "0" * 39 + "1"


def make_hub(folder: pathlib.Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """Returns a server of the repositories in a folder; its `requests` grow as they come."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer_json(self, value) -> None:
            self.answer(json.dumps(value).encode(), Content_Type="application/json")

        def do_GET(self):
            server.requests.append(f"{self.command} {self.path}")
            path = self.path.split("?")[0]
            listed = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/[^/]+.*", path)
            asked = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            repository = folder / (listed or asked)[1] if listed or asked else None
            if repository is None or not repository.is_dir():
                return self.answer(b"", 404, X_Error_Code="RepoNotFound")
            if listed:
                files = sorted(path for path in repository.rglob("*") if path.is_file())
                names = [str(path.relative_to(repository)) for path in files]
                if listed[2] == "tree":
                    rows = zip(names, files)
                    return self.answer_json(
                        [
                            {"type": "file", "path": name, "size": file.stat().st_size, "oid": name}
                            for name, file in rows
                        ]
                    )
                siblings = [{"rfilename": name} for name in names]
                return self.answer_json({"id": listed[1], "sha": _COMMIT, "siblings": siblings})
            file = repository / asked[2]
            if not file.is_file():
                return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=_COMMIT)
            body = file.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            if server.cut and self.command == "GET":
                body = body[: server.cut]
            self.answer(body, ETag=etag, X_Repo_Commit=_COMMIT)

        do_HEAD = do_GET

        def do_POST(self):
            server.requests.append(f"{self.command} {self.path}")
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            preupload = re.fullmatch(r"/api/models/(.+)/preupload/\w+", self.path.split("?")[0])
            commit = re.fullmatch(r"/api/models/(.+)/commit/\w+", self.path.split("?")[0])
            if preupload:
                files = json.loads(body)["files"]
                rows = [
                    {"path": row["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for row in files
                ]
                return self.answer_json({"files": rows})
            if commit:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        path = folder / commit[1] / line["value"]["path"]
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(base64.b64decode(line["value"]["content"]))
                url = f"http://127.0.0.1:{server.server_port}/{commit[1]}/commit/{_COMMIT}"
                return self.answer_json(
                    {"commitUrl": url, "commitOid": _COMMIT, "pullRequestUrl": None}
                )
            if self.path == "/api/validate-yaml":  # of a model card
                return self.answer_json({"errors": [], "warnings": []})
            name = json.loads(body)  # of a new repository
            owner = name.get("organization") or "somebody"
            repository = f"{owner}/{name['name']}"
            (folder / repository).mkdir(parents=True, exist_ok=True)
            url = f"http://127.0.0.1:{server.server_port}/{repository}"
            return self.answer_json({"url": url, "id": repository})

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.requests, server.cut = [], 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    print(f"http://127.0.0.1:{make_hub(arguments.folder, arguments.port).server_port}", flush=True)
    threading.Event().wait()
