"""Every row of the engine's status table, its wrapper text, and what the network does to us."""

import socket

import anyio
import pytest

from ovms_kernel.engine.client import EngineClient, explain
from ovms_kernel.errors import BadRequest, EngineFailed, NotFound, Unauthorized, Unavailable
from ovms_kernel.values import Endpoint

CALCULATOR = (
    "Mediapipe execution failed. MP status - INVALID_ARGUMENT: CalculatorGraph::Run() failed: \n"
    'Calculator::Process() for node "LLMExecutor" failed: max_tokens value should be greater than 0'
)
ROWS = [
    (400, CALCULATOR, BadRequest, "max_tokens value should be greater than 0"),
    (400, "Invalid JSON in request", BadRequest, "Invalid JSON in request"),
    (404, "Mediapipe graph definition with requested name is not found", NotFound, "is not found"),
    (412, "JSON body must contain model", BadRequest, "must contain model"),
    (412, CALCULATOR.replace("INVALID_ARGUMENT", "FAILED_PRECONDITION"), BadRequest, "max_tokens value"),
    (500, "Mediapipe is not loaded yet", Unavailable, "not loaded yet"),
    (500, "Invalid or missing API key", Unauthorized, "API key"),
    (500, "Internal inference error", EngineFailed, "Internal inference error"),
    (500, "multipart parse failure", EngineFailed, "multipart parse failure"),
    (503, "", Unavailable, "no cause"),
]


@pytest.mark.parametrize(("status", "text", "expected", "sentence"), ROWS)
async def test_each_status_becomes_the_error_that_it_means(engine, client, status, text, expected, sentence):
    async def refuse(request, reply):
        await reply.json({"error": text}, status) if text else await reply.content(b"", status)

    engine.answers["/v3/x"] = refuse
    for ask in (client.post("/v3/x", b"{}"), client.upload("/v3/x", {"a": "b"}, {}), first_of(client, "/v3/x")):
        with pytest.raises(expected) as caught:
            await ask
        assert isinstance(caught.value, expected)
        assert sentence in caught.value.message
        assert "Calculator" not in caught.value.message


async def first_of(client, path):
    return [event async for event in client.stream(path, b"{}")]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "as OpenAI says it", "code": 1}}', "The engine says: as OpenAI says it"),
        (b"<html>a proxy</html>", "The engine says: <html>a proxy</html>"),
        (b"", "The engine says: no cause given"),
        (b'{"error": "several\\nlines  and   spaces"}', "The engine says: several lines and spaces"),
        (b'{"error": "something failed: "}', "The engine says: something failed:"),
        (b"\xff\xfe" * 1000, None),
        (b"[1]", "The engine says: [1]"),
    ],
)
def test_the_cause_is_one_short_line(body, said):
    text = explain(body)
    assert said is None or text == said
    assert "\n" not in text
    assert len(text) < 1000


async def test_an_engine_that_is_not_there_is_unavailable():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client = EngineClient(Endpoint(f"http://127.0.0.1:{free.getsockname()[1]}", ""))
        with pytest.raises(Unavailable, match="not running"):
            await client.post("/v3/x", b"{}")
        assert not await client.live()
        await client.aclose()


async def test_a_connection_that_breaks_before_the_answer(engine, client):
    async def cut(request, reply):
        reply.cut()

    engine.answers["/v3/x"] = cut
    with pytest.raises(Unavailable, match="broke off"):
        await client.post("/v3/x", b"{}")
    assert len(engine.requests) == 1, "a request must not be sent twice"


async def test_an_answer_that_is_no_http(engine, client):
    async def nonsense(request, reply):
        await reply.raw(b"SSH-2.0-OpenSSH_9.6\r\n")

    engine.answers["/v3/x"] = nonsense
    with pytest.raises(Unavailable, match="broke off"):
        await client.post("/v3/x", b"{}")


async def test_half_an_answer_is_none(engine, client):
    async def half(request, reply):
        await reply.raw(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"choi')
        reply.cut()

    engine.answers["/v3/x"] = half
    with pytest.raises(Unavailable):
        await client.post("/v3/x", b"{}")


@pytest.mark.parametrize("way", ["post", "stream"])
async def test_a_cancelled_request_ends_its_connection(engine, client, way):
    began = anyio.Event()

    async def hang(request, reply):
        began.set()
        await reply.gone.wait()

    engine.answers["/v3/x"] = hang
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            if way == "post":
                group.start_soon(client.post, "/v3/x", b"{}")
            else:
                group.start_soon(first_of, client, "/v3/x")
            await began.wait()
            group.cancel_scope.cancel()
        while engine.connections:  # noqa: ASYNC110 - it is the kernel that tells the stub
            await anyio.sleep(0.001)


async def test_the_api_key_is_sent_and_never_shown(engine, client):
    engine.answers["/v3/x"] = {}
    await client.post("/v3/x", b"{}")
    assert engine.requests[0].headers["authorization"] == "Bearer secret"
    assert "secret" not in repr(client.endpoint)


async def test_no_proxy_lies_between(engine, client, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    engine.answers["/v3/x"] = {"ok": True}
    assert (await client.post("/v3/x", b"{}")).body == b'{"ok": true}'


async def test_questions_about_models(engine, client):
    engine.answers |= {
        "/v2/health/live": b"",
        "/v2/models/own%2Fmodel/ready": b"",
        "/v1/config": {"m": {"model_version_status": []}},
        "/v1/config/reload": {"m": {}},
    }
    assert await client.live()
    assert not await client.server_ready()
    assert await client.model_ready("own/model")
    assert not await client.model_ready("other")
    assert await client.config() == {"m": {"model_version_status": []}}
    assert await client.reload() == {"m": {}}
    engine.answers["/v1/config"] = [1]
    with pytest.raises(EngineFailed, match="JSON object"):
        await client.config()


async def test_an_upload_carries_fields_and_files(engine, client):
    from ovms_kernel.values import Upload

    engine.answers["/v3/up"] = {}
    await client.upload(
        "/v3/up", {"model": "模型", "granularities[]": ["a", "b"]}, {"file": Upload("a.wav", b"RIFF\r\n", "audio/wav")}
    )
    form = engine.requests[0].form
    assert form == {"model": "模型", "granularities[]": ["a", "b"], "file": b"RIFF\r\n"}
