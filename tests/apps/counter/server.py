"""A counter that is kept in memory and on disk, and endpoints that tests need.

GET  /               steps both counters together; {"count", "disk", "pid", "generation", "restored"};
                     ?ms=50 answers after a wait
GET  /check          200 when memory and disk agree, 500 when they differ
GET  /health         "ok"
GET  /who            who this is: env WHO and the host name
GET  /generation     the text of /run/edgepoint/generation, read at each request
GET  /slow?ms=200    answers after a wait
GET  /spin?ms=100    answers after using that much CPU time
GET  /size?bytes=N   N bytes, streamed
POST /echo           the body back, its sha256 in x-sha256
POST /after-restore  counts restores; 204

Listens on 127.0.0.1:$PORT. Both counters begin at 0 with the process. Standard library only.
"""

import hashlib
import json
import os
import socket
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COUNT_FILE = os.environ.get("COUNT_FILE", "/data/count")
GENERATION_FILE = "/run/edgepoint/generation"
MAX_BODY_BYTES = 64 << 20
MAX_WAIT_MS = 60_000

lock = threading.Lock()
count = 0
restored = 0


def read_disk():
    with open(COUNT_FILE, encoding="ascii") as file:
        return int(file.read())


def write_disk(value):
    # In place and always of one length; no file stays open between requests.
    descriptor = os.open(COUNT_FILE, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, b"%020d\n" % value, 0)
    finally:
        os.close(descriptor)


def step():
    """Steps both; the disk's value comes from the disk, so the two agree only if they always did."""
    global count
    with lock:
        disk = read_disk() + 1
        write_disk(disk)
        count += 1
        return count, disk


def generation():
    try:
        with open(GENERATION_FILE, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "0"


class BadRequest(Exception):
    pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        self.query = urllib.parse.parse_qs(url.query)
        try:
            self.drain_body()
            if url.path == "/":
                memory, disk = step()
                time.sleep(self.number("ms", 0, MAX_WAIT_MS) / 1000)
                now = generation()
                self.json(200, {
                    "count": memory,
                    "disk": disk,
                    "pid": os.getpid(),
                    "generation": int(now) if now.isdigit() else now,
                    "restored": restored,
                })
            elif url.path == "/check":
                with lock:
                    memory, disk = count, read_disk()
                equal = memory == disk
                self.json(200 if equal else 500,
                          {"memory": memory, "disk": disk, "equal": equal, "restored": restored})
            elif url.path == "/health":
                self.text(200, "ok")
            elif url.path == "/who":
                self.json(200, {"who": os.environ.get("WHO", ""), "hostname": socket.gethostname()})
            elif url.path == "/generation":
                self.text(200, generation())
            elif url.path == "/slow":
                time.sleep(self.number("ms", 200, MAX_WAIT_MS) / 1000)
                self.text(200, "slow")
            elif url.path == "/spin":
                end = time.thread_time() + self.number("ms", 100, MAX_WAIT_MS) / 1000
                while time.thread_time() < end:
                    pass
                self.text(200, "spun")
            elif url.path == "/size":
                self.stream(self.number("bytes", 1024, 1 << 40))
            else:
                self.text(404, "no such path")
        except BadRequest as error:
            self.close_connection = True
            self.text(400, str(error))

    do_HEAD = do_GET

    def do_POST(self):
        global restored
        try:
            body = self.read_body()
            if self.path == "/echo":
                self.answer(200, body, self.headers.get("content-type", "application/octet-stream"),
                            f"x-sha256: {hashlib.sha256(body).hexdigest()}\r\n")
            elif self.path == "/after-restore":
                with lock:
                    restored += 1
                self.answer(204, b"")
            else:
                self.text(404, "no such path")
        except BadRequest as error:
            self.close_connection = True
            self.text(400, str(error))

    # Reading.

    def number(self, name, default, most):
        text = self.query.get(name, [str(default)])[0]
        if not (text.isascii() and text.isdigit()) or int(text) > most:
            raise BadRequest(f"{name} must be a whole number up to {most}")
        return int(text)

    def drain_body(self):
        if "content-length" in self.headers or "transfer-encoding" in self.headers:
            self.read_body()

    def read_body(self):
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return self.read_chunks()
        text = self.headers.get("content-length", "0")
        if not (text.isascii() and text.isdigit()) or int(text) > MAX_BODY_BYTES:
            raise BadRequest(f"the body may have up to {MAX_BODY_BYTES} bytes")
        body = self.rfile.read(int(text))
        if len(body) != int(text):
            raise BadRequest("the body ended early")
        return body

    def read_chunks(self):
        body = bytearray()
        while True:
            try:
                size = int(self.rfile.readline(1024).split(b";")[0], 16)
            except ValueError:
                raise BadRequest("bad chunk size") from None
            if size < 0 or len(body) + size > MAX_BODY_BYTES:
                raise BadRequest(f"the body may have up to {MAX_BODY_BYTES} bytes")
            if size == 0:
                while self.rfile.readline(65536) not in (b"\r\n", b"\n", b""):
                    pass
                return bytes(body)
            body += self.rfile.read(size)
            self.rfile.readline(16)

    # Answering: head and body in one write, so that no delayed acknowledgement is waited for.

    def head(self, status, content_type, length, more=""):
        reason = self.responses.get(status, ("",))[0]
        close = "connection: close\r\n" if self.close_connection else ""
        size = "" if status == 204 else f"content-type: {content_type}\r\ncontent-length: {length}\r\n"
        return f"HTTP/1.1 {status} {reason}\r\n{size}{more}{close}\r\n".encode("latin-1")

    def answer(self, status, body, content_type="", more=""):
        head = self.head(status, content_type, len(body), more)
        self.wfile.write(head if self.command == "HEAD" else head + body)

    def text(self, status, text):
        self.answer(status, text.encode() + b"\n", "text/plain; charset=utf-8")

    def json(self, status, value):
        self.answer(status, json.dumps(value).encode() + b"\n", "application/json")

    def stream(self, length):
        piece = b"0123456789abcdef" * 4096
        self.wfile.write(self.head(200, "application/octet-stream", length))
        while length > 0 and self.command != "HEAD":
            self.wfile.write(piece[:length])
            length -= len(piece[:length])

    def log_request(self, *args):
        pass

    def log_message(self, form, *args):
        print(f"counter: {form % args}", flush=True)


class Server(ThreadingHTTPServer):
    request_queue_size = 1024

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(f"counter: {error!r}", flush=True)


if __name__ == "__main__":
    write_disk(0)
    port = int(os.environ["PORT"])
    server = Server(("127.0.0.1", port), Handler)
    print(f"counter: listening on 127.0.0.1:{port}, pid {os.getpid()}", flush=True)
    server.serve_forever()
