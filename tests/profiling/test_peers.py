"""Engines that stream over HTTP, against a small server that answers as they do, and another process that feeds ids."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny_model import make_tiny_model

from edgerun.cli.main import cli
from edgerun.errors import EdgerunError, NetworkError, NotFoundError, UsageError
from edgerun.profiling import Case
from edgerun.profiling.peers import EndpointEngine, LlamaCppEngine, OllamaEngine
from edgerun.profiling.peers.client import prompt_text

_FIRST_S, _EACH_S, _SILENT_S = 0.05, 0.01, 0.2


class Server(BaseHTTPRequestHandler):
    """Streams "x" after a while, as OpenAI's kind of server and as Ollama do."""

    asked: list[dict[str, Any]] = []

    def do_GET(self) -> None:
        if self.path.startswith("/page"):
            self._send(b"<html>welcome</html>")
            return
        if self.path.startswith("/list"):
            self._send(b'{"data": [7, {"name": "x"}], "models": "none"}')
            return
        listed = {"data": [{"id": "tiny"}]} if self.path == "/v1/models" else {"models": [{"name": "tiny:latest"}]}
        self._send(json.dumps(listed).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(asked)
        if asked["model"] == "broken":
            self.send_error(500, "no memory")
            return
        openai = self.path == "/v1/completions"
        self.send_response(200)
        self.end_headers()
        time.sleep(_FIRST_S)
        for index in range(asked["max_tokens"] if openai else asked["options"]["num_predict"]):
            time.sleep(_EACH_S if index else 0)
            if index and asked["model"] == "dying":
                return
            if index and asked["model"] == "silent":
                time.sleep(3 * _SILENT_S)
            if asked["model"] == "mad":
                self.wfile.write(b"data: {nonsense\n\n")
            elif asked["model"] == "odd":
                self.wfile.write(b'data: {"choices": [7]}\n\ndata: {"choices": {"text": "x"}}\n\n')
            elif openai:
                self.wfile.write(b'data: {"choices": [{"text": "x"}]}\n\n')
            else:
                self.wfile.write(b'{"response": "x"}\n')
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n" if openai else b'{"done": true}\n')

    def log_message(self, format: str, *arguments: object) -> None:
        """Tests are quiet."""

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def url() -> Iterator[str]:
    Server.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_times_are_taken_at_the_client(url: str) -> None:
    for engine in (EndpointEngine(f"{url}/v1/"), OllamaEngine(url=url)):
        run = engine.run(Case(20, 5))
        assert engine.model in ("tiny", "tiny:latest") and run.prompt_tokens == 20
        assert _FIRST_S <= run.prompt_s < 20 * _FIRST_S and len(run.steps_s) == 4
        assert all(step > 0 for step in run.steps_s) and sum(run.steps_s) >= 3.5 * _EACH_S
        assert engine.run(Case(20, 0)).steps_s == () and engine.run(Case(0, 3)).prompt_tok_s is None
        first, second = (asked["prompt"].split()[0] for asked in Server.asked[-2:])
        assert first != second, "no answer may come from a server's cache"
        with pytest.raises(UsageError, match="through a server"):
            engine.run(Case(5, 5, depth=10))
    assert len(prompt_text(20, 1).split()) == 20


def test_servers_that_fail_are_named(url: str) -> None:
    with pytest.raises(NetworkError, match="refused .500."):
        EndpointEngine(f"{url}/v1", "broken").run(Case(4, 4))
    with pytest.raises(NetworkError, match="no JSON"):
        EndpointEngine(f"{url}/v1", "mad").run(Case(4, 4))
    for engine in (EndpointEngine(f"{url}/v1", "dying"), OllamaEngine("dying", url=url)):
        with pytest.raises(NetworkError, match="broke off in the middle"):
            engine.run(Case(4, 4))
    with pytest.raises(NetworkError, match="said nothing for 0.2 s"):
        EndpointEngine(f"{url}/v1", "silent", limit_s=_SILENT_S).run(Case(4, 4))
    with pytest.raises(NetworkError, match="answered nothing"):
        EndpointEngine(f"{url}/v1", "odd").run(Case(4, 4))
    with pytest.raises(NetworkError, match="cannot be reached"):
        EndpointEngine("http://127.0.0.1:9/v1")
    for make in (lambda at: EndpointEngine(at), lambda at: OllamaEngine(url=at)):
        with pytest.raises(NetworkError, match="no JSON"):
            make(f"{url}/page")
        with pytest.raises(NetworkError, match="no models"):
            make(f"{url}/list")
    for wrong in ("127.0.0.1:80", "file:///etc/passwd", "http://", "http://a:b/", "http://[1/", "http://a b/v1"):
        with pytest.raises(UsageError, match="an endpoint is a URL"):
            EndpointEngine(wrong)


def test_bench_compares_with_a_server(tmp_path: Path, url: str) -> None:
    chat_model = make_tiny_model(tmp_path / "tiny.gguf")
    runner = CliRunner()

    def run(*arguments: object) -> Result:
        return runner.invoke(cli, [str(each) for each in arguments])

    arguments = ("-p", "8", "-n", "0", "-pg", "6,4", "-r", "2")
    result = run("bench", chat_model, *arguments, "--endpoint", f"{url}/v1", "-o", "json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [(each["engine"], each["test"]) for each in rows] == [
        (engine, test) for test in ("pp8", "pp6+tg4") for engine in ("edgerun", "endpoint")
    ]
    assert "pp8: edgerun / endpoint = " in result.stderr and "95 %" in result.stderr
    for wrong in (("--engine", "magic"), ("--engine", "endpoint"), ("--engine", "edgerun,llamacpp,ollama")):
        assert run("bench", chat_model, *wrong).exit_code == 2


def test_llama_cpp_in_a_process_of_its_own(tmp_path: Path) -> None:
    worker = (
        "#!/usr/bin/env python3\n"
        "import json, os, signal, sys\n"
        "print(json.dumps({'load_s': 0.5, 'version': '9'}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    if asked['depth'] == 1: sys.exit('llama_decode failed')\n"
        "    if asked['depth'] == 2: os.kill(os.getpid(), signal.SIGILL)\n"
        "    print(json.dumps({'prompt_s': 2.0, 'steps_s': [0.5] * asked['decode']}), flush=True)\n"
    )
    python = tmp_path / "python"
    python.write_text(worker)
    python.chmod(0o755)
    engine = LlamaCppEngine(tmp_path / "model.gguf", context=64, threads=1, python=str(python))
    run = engine.run(Case(10, 3))
    assert (run.prompt_tok_s, run.decode_tok_s, engine.backend) == (5, 2, "llama-cpp-python 9")
    for depth, why in ((1, "llama_decode failed"), (2, "Illegal instruction")):
        with pytest.raises(EdgerunError, match=why):
            engine.run(Case(10, 3, depth=depth))
        with pytest.raises(EdgerunError, match=f"has ended|{why}"):
            engine.run(Case(10, 3))
        engine.close()
        engine = LlamaCppEngine(tmp_path / "model.gguf", context=64, threads=1, python=str(python))
    engine.close()
    with pytest.raises(NotFoundError, match="--llamacpp-python"):
        LlamaCppEngine(tmp_path / "model.gguf", context=64, threads=1)
    with pytest.raises(NotFoundError, match="cannot be started"):
        LlamaCppEngine(tmp_path / "model.gguf", context=64, threads=1, python=str(tmp_path / "none"))
