# /// script
# requires-python = ">=3.11"
# dependencies = ["tritonclient[http]>=2.60"]
# ///
"""tritonclient's questions about readiness; a name with a slash has to be quoted by the caller."""

import os
from urllib.parse import quote

import tritonclient.http as triton

key = {"authorization": f"Bearer {os.environ['KEY']}"}
client = triton.InferenceServerClient(os.environ["SERVED"].removeprefix("http://"))
assert client.is_server_live(headers=key)
assert client.is_server_ready(headers=key)
for name in ("tiny/chat", quote("tiny/chat", safe="")):
    assert client.is_model_ready(name, headers=key)
assert not client.is_model_ready("no/such", headers=key)
assert client.get_model_metadata("tiny/chat", headers=key)["name"] == "tiny/chat"
