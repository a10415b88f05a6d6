"""A mail server (aiosmtpd) and a web server with TLS, for the tests of notices. Both keep what came in as files.

Mail: who logs in as `operator` with the password `mail-secret` may write; the recipient `refused@...` is refused.
Web: the path's first part says what is answered: `ok`, `created`, `error`, `moved`, `archived` or, never, `hang`.
"""

import http.server
import json
import logging
import os
import socket
import ssl
import sys
import threading
import uuid
import warnings

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

# Clients that refuse the certificate are what is wanted here.
logging.disable()
warnings.simplefilter("ignore")
folder = sys.argv[1]
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(f"{folder}/server.crt", f"{folder}/server.key")


def keep(kind, record):
    """One file for each; it has its name only when it is whole."""
    name = f"{folder}/{kind}/{uuid.uuid4()}"
    with open(name + ".part", "w", encoding="utf-8") as file:
        json.dump(record, file)
    os.rename(name + ".part", name + ".json")


class Mailbox:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("refused@"):
            return f"550 5.1.1 <{address}> does not exist"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        keep("mail", {
            "from": envelope.mail_from, "to": envelope.rcpt_tos, "tls": server.transport.get_extra_info("ssl_object") is not None,
            "user": (session.auth_data or b"").decode(), "text": envelope.content.decode(),
        })
        return "250 taken"


def authenticate(server, session, envelope, mechanism, data):
    good = data.login == b"operator" and data.password == b"mail-secret"
    return AuthResult(success=good, handled=False, auth_data=data.login)


class StartTls(Controller):
    def factory(self):
        return SMTP(Mailbox(), tls_context=tls, require_starttls=True, auth_required=True, authenticator=authenticate)


class Plain(Controller):
    def factory(self):
        return SMTP(Mailbox())


class Implicit(Controller):
    def factory(self):
        return SMTP(Mailbox(), auth_required=True, auth_require_tls=False, authenticator=authenticate)


class Web(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        keep("web", {"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": json.loads(body)})
        kind = self.path.split("/")[1]
        if kind == "hang":
            threading.Event().wait()
        status = {"ok": 200, "created": 201, "error": 500, "moved": 302, "archived": 410}[kind]
        # As careless servers do: what was sent comes back.
        text = b"channel_is_archived" if kind == "archived" else f"{self.path} {self.headers.get('authorization')}".encode()
        self.send_response(status)
        if kind == "moved":
            self.send_header("location", "/ok/moved")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def finish_request(self, request, client_address):
        # In the request's own thread: a client that refuses the certificate must not end the server.
        with tls.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def handle_error(self, request, client_address):
        pass


# Controller takes no port 0.
def port_of(controller):
    controller.start()
    return controller.server.sockets[0].getsockname()[1]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


start_tls = port_of(StartTls(Mailbox(), hostname="127.0.0.1", port=free_port()))
implicit = port_of(Implicit(Mailbox(), hostname="127.0.0.1", port=free_port(), ssl_context=tls))
plain = port_of(Plain(Mailbox(), hostname="127.0.0.1", port=free_port()))
web = Server(("127.0.0.1", 0), Web)
threading.Thread(target=web.serve_forever, daemon=True).start()
print(start_tls, implicit, plain, web.server_address[1], flush=True)
sys.stdin.read()
os._exit(0)
