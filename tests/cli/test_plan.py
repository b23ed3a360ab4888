"""`edgerun plan` of a model that is not here."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hub.fake_hub import FakeHub, serve
from models.instances import INSTANCES, write

from cli.conftest import Program


def test_before_a_download(program: Program, tmp_path: Path, user_home: Path) -> None:
    model = write(INSTANCES["llama-Q4_0"], tmp_path / "big-Q4_0.gguf")
    with serve(FakeHub({"org/big-GGUF": {model.name: model.read_bytes()}})) as hub:
        env = os.environ | {"HF_ENDPOINT": hub.endpoint}
        done = program("plan", "org/big-GGUF", "--json", "-c", 64, env=env)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["download_bytes"] == model.stat().st_size
        assert said["mode"] == "resident"
        assert said["speed"]["decode_tok_s"] > 0
        assert not list(user_home.rglob("*.gguf")), "nothing was downloaded"
        assert "to download" in program("plan", "org/big-GGUF", "-c", 64, env=env).stdout
        gone = program("plan", "org/none", "-c", 64, env=env)
        assert gone.returncode == 3 and "no such repository" in gone.stderr
