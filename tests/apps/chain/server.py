"""The web process of a two-process app: counts in redis, over a unix socket.

GET /        INCR hits; {"count", "pid"}
GET /health  PING; "ok", or 503 while redis does not answer

Listens on 127.0.0.1:$PORT; redis is at $REDIS_SOCKET (/tmp/redis.sock). Standard library only.
"""

import json
import os
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REDIS_SOCKET = os.environ.get("REDIS_SOCKET", "/tmp/redis.sock")
START_WAIT_S = 20


class Redis:
    """One connection, shared under a lock, opened anew when it is gone."""

    def __init__(self):
        self.lock = threading.Lock()
        self.stream = None
        self.file = None

    def call(self, *words):
        request = b"*%d\r\n" % len(words) + b"".join(
            b"$%d\r\n%s\r\n" % (len(word), word) for word in (w.encode() for w in words))
        with self.lock:
            try:
                self.send(request)
                return self.reply()
            except (OSError, EOFError, ValueError):
                self.close()
                raise

    def send(self, request):
        if self.stream is not None:
            try:
                self.stream.sendall(request)
                return
            except OSError:
                # The peer is gone and has not seen the request: safe to ask the next one.
                self.close()
        self.stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.stream.settimeout(5)
        self.stream.connect(REDIS_SOCKET)
        self.file = self.stream.makefile("rb")
        self.stream.sendall(request)

    def reply(self):
        line = self.file.readline(65536)
        if not line.endswith(b"\r\n"):
            raise EOFError("redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest.decode()
        raise ValueError(f"redis answers {line!r}")

    def close(self):
        for part in (self.file, self.stream):
            if part is not None:
                part.close()
        self.file = self.stream = None


redis = Redis()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        try:
            if self.path == "/":
                body = {"count": redis.call("INCR", "hits"), "pid": os.getpid()}
                self.answer(200, json.dumps(body), "application/json")
            elif self.path == "/health":
                redis.call("PING")
                self.answer(200, "ok")
            else:
                self.answer(404, "no such path")
        except (OSError, EOFError, ValueError) as error:
            self.answer(503, f"redis: {error}")

    def answer(self, status, text, content_type="text/plain; charset=utf-8"):
        body = text.encode() + b"\n"
        # Head and body in one write.
        self.wfile.write(
            f"HTTP/1.1 {status} {self.responses[status][0]}\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode() + body)

    def log_request(self, *args):
        pass

    def log_message(self, form, *args):
        print(f"web: {form % args}", flush=True)


class Server(ThreadingHTTPServer):
    request_queue_size = 1024

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(f"web: {error!r}", flush=True)


def wait_for_redis():
    end = time.monotonic() + START_WAIT_S
    while True:
        try:
            redis.call("PING")
            return
        except (OSError, EOFError, ValueError) as error:
            if time.monotonic() > end:
                sys.exit(f"web: redis is not there after {START_WAIT_S} s: {error}")
            time.sleep(0.01)


if __name__ == "__main__":
    wait_for_redis()
    port = int(os.environ["PORT"])
    server = Server(("127.0.0.1", port), Handler)
    print(f"web: listening on 127.0.0.1:{port}, pid {os.getpid()}", flush=True)
    server.serve_forever()
