"""A page in a real browser: one whose origin is allowed, and one whose is not."""

import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGE = """<!doctype html><title>page</title><pre id=out>nothing</pre><script>
fetch("{url}/v1/chat/completions", {{
  method: "POST",
  headers: {{ "content-type": "application/json", authorization: "Bearer {key}" }},
  body: JSON.stringify({{ model: "tiny/chat", messages: [{{ role: "user", content: "What is OpenVINO?" }}] }}),
}}).then((answer) => answer.json()).then((value) => (out.textContent = value.choices[0].message.content))
  .catch((error) => (out.textContent = "refused: " + error));
</script>"""


@contextmanager
def site(page: str) -> Iterator[str]:
    """Serve one page, and yield host and port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page.encode()
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_only_an_allowed_page_gets_an_answer(server: Any, tmp_path: Path) -> None:
    """The browser takes the page of a server here for one of the origin that the server allows."""
    browser = next((found for each in BROWSERS if (found := shutil.which(each))), None)
    if not browser:
        pytest.skip(f"no browser is installed; looked for {', '.join(BROWSERS)}")
    allowed, foreign = "http://pages.example", "http://foreign.example"
    with site(PAGE.format(url=server.url, key=server.key)) as place:
        seen = {}
        for origin in (allowed, foreign):
            words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
            words += [f"--host-resolver-rules=MAP *.example {place}"]
            words += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", origin]
            seen[origin] = subprocess.run(words, capture_output=True, text=True, check=True, timeout=90).stdout
    assert "OpenVINO is an open source toolkit" in seen[allowed]
    assert "refused:" in seen[foreign]
    assert "toolkit" not in seen[foreign]
