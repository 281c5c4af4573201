"""A fake of the Hugging Face Hub that keeps what is uploaded to it."""

import base64
import json
import threading

import flask
from werkzeug.serving import make_server

TOKEN = "hf_test"  # of the fake


class Hub:
    """The hub's API for making a model and uploading files to it, on a port of this machine.

    Attributes:
        models: files by name, by model.
        private: models that were made private.
        refuses: an HTTP status that it answers everything with, or None.
    """

    def __init__(self):
        self.models, self.private, self.refuses = {}, set(), None
        app = flask.Flask("hub")
        app.before_request(self._check)
        app.post("/api/repos/create")(self._create)
        app.post("/api/validate-yaml")(self._validate)
        app.post("/api/models/<owner>/<name>/preupload/main")(self._preupload)
        app.post("/api/models/<owner>/<name>/commit/main")(self._commit)
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()

    def _check(self):
        told = flask.request.headers.get("Authorization")
        if self.refuses or told != f"Bearer {TOKEN}":
            return {"error": "refused"}, self.refuses or 401
        return None

    def _create(self):
        body = flask.request.json
        name = f"{body['organization']}/{body['name']}"
        if name in self.models:
            return {"error": "You already created it", "url": f"{self.url}/{name}"}, 409
        self.models[name] = {}
        if body.get("private") or body.get("visibility") == "private":  # before and since 2.0
            self.private.add(name)
        return {"url": f"{self.url}/{name}"}

    def _validate(self):
        return {"warnings": [], "errors": []}

    def _preupload(self, owner, name):
        files = [one["path"] for one in flask.request.json["files"]]
        return {
            "files": [
                {"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files
            ]
        }

    def _commit(self, owner, name):
        for line in flask.request.data.splitlines():
            body = json.loads(line)
            if body["key"] == "file":
                content = base64.b64decode(body["value"]["content"])
                self.models[f"{owner}/{name}"][body["value"]["path"]] = content
        return {"commitUrl": f"{self.url}/{owner}/{name}/commit/1", "commitOid": "1" * 40}
