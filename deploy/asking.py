"""Asking what was installed or put into an image, until it answers."""

import time
import urllib.error
import urllib.request

PATIENCE = 30


def ask(url, method="GET", body=None, key=None):
    """Status and body of one request; `key` is one of the Admin API."""
    request = urllib.request.Request(url, body, {"X-API-KEY": key} if key else {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until(what, done, process):
    """Waits until `done` is true, for as long as `process` runs, and at most PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert process.poll() is None, f"ended with {process.returncode} before {what}"
        assert time.monotonic() < end, f"not {what} within {PATIENCE} s"
        time.sleep(0.1)
