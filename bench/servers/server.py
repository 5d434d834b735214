"""An HTTP server as they are: a thread for each connection, JSON, and a C extension that allocates (zlib)."""
import json
import sys
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TEXT = bytes(range(256)) * 16


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one piece: otherwise each answer waits 40 ms for the client's delayed acknowledgement.
    wbufsize = -1

    def do_GET(self):
        packed = zlib.compress(TEXT, 1)
        body = json.dumps({"path": self.path, "packed_bytes": len(packed), "numbers": list(range(200))}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
