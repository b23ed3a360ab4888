"""`edgerun calibrate`, `--prefill` and `doctor --providers`."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models.instances import INSTANCES, write

import edgerun
from cli.conftest import Run
from edgerun import LLM
from edgerun.api import prefill as api_prefill
from edgerun.errors import Cancelled, DoesNotFitError, ReadError, UnsupportedError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = pytest.mark.usefixtures("nothing_calibrated")

DRAFT = Path(edgerun.__file__).parent / "embedded" / "tales-draft.gguf"
LADDER = [32, 128, 256]
PROMPT = "Once upon a time there was a little fox who lived in a dark forest with his mother and two sisters. One day"


def test_calibrate_then_run(run: Run, user_home: Path) -> None:
    """Measured, kept, and used from then on."""
    done = run("calibrate", DRAFT, "--backend", "ort-cpu:w8a8", "--backend", "ort-cpu:fp32", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said) == {"choice", "why", "least_tokens", "made_with", "rows"}
    backends = ["kernels", "ort-cpu:w8a8", "ort-cpu:fp32"]
    assert [(row["backend"], row["tokens"]) for row in said["rows"]] == [(b, n) for b in backends for n in LADDER]
    for row in said["rows"]:
        assert row["prompt_s"] > 0 and not row["refused"]
        if row["backend"] != "kernels":
            assert set(row["layer_s"]) >= {"qkv", "attend"}
            assert 0 < 0.5 * sum(row["layer_s"].values()) * 4 < row["prompt_s"], "four layers, both sides at once"
    errors = {row["backend"]: row["error"] for row in said["rows"] if row["tokens"] == 256}
    assert errors["kernels"] == 0
    assert 0 < errors["ort-cpu:fp32"] < 0.05 and 0 < errors["ort-cpu:w8a8"] < 0.1, "the kernels round too"
    assert said["choice"] in backends and said["why"]
    assert list((user_home / "cache" / "edgerun" / "prefill").glob("calibration-*.json"))

    kept = next((user_home / "cache" / "edgerun" / "prefill").glob("calibration-*.json"))
    chosen = json.loads(kept.read_text())
    kept.write_text(json.dumps(chosen | {"choice": "ort-cpu:w8a8", "least_tokens": 9}))
    with LLM(DRAFT) as llm:
        assert llm.engine.decoder.prompt_backend.name == "ort-cpu:w8a8"  # type: ignore[attr-defined]


def test_calibrate_table(run: Run, tmp_path: Path) -> None:
    model = write(INSTANCES["llama"], tmp_path / "model.gguf")
    done = run("calibrate", model, "--backend", "ort-cpu:w8a8", "--most-error", "0")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["BACKEND", "TOKENS", "MS", "TOKENS/S", "JOULES", "ERROR", "WEIGHTS"]
    assert sum(line.startswith("ort-cpu:w8a8 ") for line in lines) == 3
    assert lines[-1].startswith("chosen: kernels (no other backend runs this model with an error of at most 0")


def test_every_candidate_is_measured_or_refused(run: Run, tmp_path: Path) -> None:
    model = write(INSTANCES["qwen3moe"], tmp_path / "model.gguf")
    said = json.loads(run("calibrate", model, "--json").stdout)
    providers = json.loads(run("doctor", "--providers", "--json").stdout)
    devices = [each for each in providers["devices"] if each["runs"]]
    wanted = {f"{d['backend']}:{scheme}" for d in devices for scheme in d["schemes"]}
    wanted |= {f"{d['backend']}:{d['schemes'][0]}:experts" for d in devices}
    assert {row["backend"] for row in said["rows"]} == wanted | {"kernels"}


def test_experts_too(run: Run, user_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a calibration says so, from as many rows on as it says; refused where they do not fit, or are not there."""
    model = write(INSTANCES["qwen3moe-small-Q4_0"], tmp_path / "model.gguf")
    assert run("calibrate", model, "--backend", "ort-cpu:w8a8:experts", "--most-error", "9").exit_code == 0
    (kept,) = (user_home / "cache" / "edgerun" / "prefill").glob("calibration-*.json")
    chosen = json.loads(kept.read_text())
    rows = [row for row in chosen["rows"] if row["backend"] != "kernels"]
    assert (
        all(row["expert_rows"] in (8, 16, 32, 64, 128) for row in rows) or "faster on the kernels" in rows[0]["refused"]
    )
    assert all(row["weights_bytes"] > 8 * 3 * 256 * 256 for row in rows if not row["refused"]), "with experts"
    measured = [{**chosen["rows"][-1], "backend": "ort-cpu:w8a8:experts", "refused": "", "expert_rows": 24}]
    kept.write_text(json.dumps(chosen | {"choice": "ort-cpu:w8a8:experts", "least_tokens": 9, "rows": measured}))
    with LLM(model) as llm:
        backend = llm.engine.decoder.prompt_backend  # type: ignore[attr-defined]
        assert (backend.name, backend.expert_rows) == ("ort-cpu:w8a8:experts", 24)

    with monkeypatch.context() as patched:
        patched.setattr(api_prefill, "room_bytes", lambda plan: 2_000_000)  # enough for all but the experts
        with LLM(model, prefill="ort-cpu:w8a8"):
            pass
        with pytest.raises(DoesNotFitError, match=r"ort-cpu:w8a8:experts keeps its own copy .* --prefill kernels"):
            LLM(model, prefill="ort-cpu:w8a8:experts")

    done = run("run", DRAFT, "-n", "4", "--prefill", "ort-cpu:w8a8:experts", "hello")
    assert done.exit_code != 0 and "it has none; leave out :experts" in done.stderr


def test_calibrating_what_is_refused(run: Run, tmp_path: Path) -> None:
    model = write(INSTANCES["relu"], tmp_path / "model.gguf")
    done = run("calibrate", model, "--backend", "ort-cpu:fp32")
    assert done.exit_code == 0
    assert "sparse feed-forward" in done.stderr and "chosen: kernels" in done.stdout
    gemma = write(INSTANCES["gemma2"], tmp_path / "gemma.gguf")
    done = run("calibrate", gemma, "--backend", "ort-cpu:fp32:rotate", "--json")
    assert done.exit_code == 0, done.stderr
    assert "cannot be rotated" in json.loads(done.stdout)["rows"][-1]["refused"]


def test_a_rotated_backend_is_measured_rotated(tmp_path: Path) -> None:
    """Outliers in the norms: their error is seen without rotation, and not with it."""
    from edgerun.api.calibration import calibrate_model
    from tests.prefill.planting import write_planted

    model = write_planted(tmp_path / "planted.gguf", ("norms",), 60.0)
    names = ("ort-cpu:w8a8:no-shadow", "ort-cpu:w8a8:rotate:no-shadow", "ort-cpu:fp32", "ort-cpu:fp32:rotate")
    found = calibrate_model(model, backends=names)
    errors = {row.backend: row.error for row in found.rows if row.tokens == 256}
    assert errors[names[1]] < 0.5 * errors[names[0]]
    assert errors[names[2]] < 1e-3 and errors[names[3]] < 1e-3, "a model of F32 weights is the same"


@pytest.mark.parametrize("backend", ["ort-cpu:w8a8", "ort-cpu:fp32:rotate", "ort-cpu"])
def test_run_with_a_backend(run: Run, backend: str) -> None:
    done = run("run", DRAFT, PROMPT, "--raw", "--prefill", backend, "-n", "8", "--temperature", "0")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("backend", ["ort-cpu:w8a8", "ort-cpu:fp32:rotate", "ort-cpu"])
def test_the_backends_logits_are_near(backend: str) -> None:
    """Through the library, as the command loads it."""
    results = []
    for prefill in ("kernels", backend):
        with LLM(DRAFT, prefill=prefill) as llm:
            ids = llm.tokenize(PROMPT)
            assert len(ids) >= 16
            results.append(llm.logits(ids))
    difference = np.linalg.norm(results[1] - results[0]) / np.linalg.norm(results[0])
    assert 0 < difference < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prefill", "tpu"), "unknown prompt backend 'tpu'"),
        (("--prefill", "ort-cpu:w1a1"), "unknown scheme 'w1a1'"),
        (("--prefill", "ort-cpu:w8a8:slow"), "unknown 'slow'"),
    ],
)
def test_bad_names(run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    model = write(INSTANCES["llama"], tmp_path / "model.gguf")
    done = run("run", DRAFT, "hello", *arguments)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr
    done = run("calibrate", model, "--backend", arguments[1])
    assert done.exit_code == 2 and message in done.stderr
    assert run("calibrate", model, "--objective", "beauty").exit_code == 2
    assert run("calibrate", tmp_path / "none.gguf").exit_code == 3


def test_energy_needs_a_meter(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgerun.profiling.energy.EnergyMeter.joules", lambda self: None)
    model = write(INSTANCES["llama"], tmp_path / "model.gguf")
    done = run("calibrate", model, "--objective", "energy", "--backend", "ort-cpu:fp32")
    assert done.exit_code == 2 and "cannot choose by energy" in done.stderr


def test_doctor_lists_providers(run: Run) -> None:
    done = run("doctor", "--providers", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    first = said["devices"][0]
    assert first["backend"] == "ort-cpu" and first["runs"] and not first["static_shapes"] and said["onnxruntime"]
    names = {each["backend"].split("-")[0] for each in said["devices"]}
    assert names | set(said["absent"]) == {
        *("ort", "openvino", "qnn", "coreml", "webgpu", "dml", "vitisai", "xnnpack", "nnapi")
    }
    assert all(said["absent"].values()), "each with a reason"
    text = run("doctor", "--providers").stdout
    assert "kernels" in text and "ort-cpu" in text
    for name, reason in said["absent"].items():
        assert f"no: {reason}" in " ".join(text.split()) or name in text


@pytest.mark.usefixtures("sets_measured")
def test_doctor_calibrates_once(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edgerun.prefill import calibrate

    model, real, count = write(INSTANCES["llama"], tmp_path / "model.gguf"), calibrate.calibrate, []

    def counted(*args: object, **more: object) -> object:
        count.append(1)
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(calibrate, "calibrate", counted)
    monkeypatch.setattr("edgerun.hub.embedded_model", lambda: model)
    said = [json.loads(run("doctor", "--json").stdout)["prefill"] for _ in range(2)]
    assert said[0] == said[1] and len(count) == 1


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied", "calibration.json")

    return lambda: monkeypatch.setattr("edgerun.prefill.calibrate.write_kept", refuse)


@pytest.mark.usefixtures("sets_measured")
def test_doctor_where_nothing_can_be_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unwritable: Callable[[], None]
) -> None:
    model = write(INSTANCES["llama"], tmp_path / "model.gguf")
    monkeypatch.setattr("edgerun.hub.embedded_model", lambda: model)
    unwritable()
    done = run("doctor", "--json")
    assert done.exit_code == 0, done.stderr
    assert "Permission denied" in json.loads(done.stdout)["prefill"]


FAILURES = [
    OSError(errno.ENOSPC, "No space left on device", "layer-000.weights"),
    OSError(errno.EIO, "Input/output"),
    MemoryError("no memory"),
    ReadError("the model was cut"),
    Cancelled("stop"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__ + str(getattr(error, "errno", "")))
@pytest.mark.parametrize("seam", ["write_layer", "OnnxBackend", "least_expert_rows", "profile_ranges"])
def test_failures_of_the_machine_are_no_results(
    run: Run, user_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seam: str, error: Exception
) -> None:
    """Wherever they come from: the command fails, and the next one measures as if nothing had been."""

    def fail(*args: object, **more: object) -> object:
        raise error

    backend = "ort-cpu:w8a8:experts" if seam == "least_expert_rows" else "ort-cpu:w8a8"
    model = write(INSTANCES["qwen3moe" if "experts" in backend else "llama"], tmp_path / "model.gguf")
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path))
        patched.setattr(f"edgerun.prefill.calibrate.{seam}", fail)
        done = run("calibrate", model, "--backend", backend)
    assert done.exit_code not in (0, 2) and "Traceback" not in done.stderr and done.stderr
    assert not list((user_home / "cache" / "edgerun" / "prefill").glob("calibration-*.json"))
    assert not list(tmp_path.glob(".edgerun.*")), "nothing is left behind"


def test_a_full_disk_says_where(run: Run, tmp_path: Path) -> None:
    """A real one: files of this process may not grow."""
    model = write(INSTANCES["llama"], tmp_path / "model.gguf")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from edgerun.prefill import calibrate\n"
        "real = calibrate.write_layer\n"
        "def small(*args, **more):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "    return real(*args, **more)\n"
        "calibrate.write_layer = small\n"
        "sys.argv[1:] = ['calibrate', sys.argv[1], '--backend', 'ort-cpu:fp32']\n"
        "from edgerun.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 4, done.stderr
    assert "disk is full" in done.stderr and "TMPDIR" in done.stderr


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : write failed: No space left on device", DoesNotFitError),
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc", DoesNotFitError),
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer", DoesNotFitError),
        ("open file layer-000.weights fail, errcode = 24 - Too many open files", ReadError),
        ("Node (x) Op (MatMul) has no kernel", UnsupportedError),
    ],
)
def test_what_a_provider_says_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[Exception]
) -> None:
    from edgerun.prefill import providers

    def fail(*args: object, **more: object) -> object:
        raise RuntimeError(said)

    device = providers.device_named("ort-cpu")
    options = providers.session_options(device, 1)
    monkeypatch.setattr(providers.runtime(), "InferenceSession", fail)
    with pytest.raises(kind):
        providers.open_session(device, tmp_path / "x.onnx", options)
