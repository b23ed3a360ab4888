"""What is said when a provider, a scheme or a flag is not to be had, and what happens then."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgerun import LLM
from edgerun.api.calibration import calibrate_model
from edgerun.api.prefill import prefill_dir
from edgerun.errors import DoesNotFitError, UnsupportedError, UsageError
from edgerun.events import Notice
from edgerun.formats.gguf import open_gguf
from edgerun.prefill import providers, sessions
from edgerun.prefill.calibrate import Calibration, Row, calibration_path, load_calibration, made_with, save_calibration
from edgerun.prefill.choice import fit_scheme, parse_choice
from edgerun.prefill.opening import open_backend
from edgerun.prefill.providers import KNOWN, Device, ProviderKind, device_named, open_session, session_options
from edgerun.prefill.schemes import SCHEMES
from edgerun.prefill.sessions import Sessions
from edgerun.weights.identity import content_digest
from tests.models.instances import INSTANCES, write
from tests.prefill.making import attached, build, ort_backend, tokens

ROOT = Path(__file__).parents[2]
FLOAT = onnx.TensorProto.FLOAT


# -- names ------------------------------------------------------------------------------------------------------


def test_choices():
    plain = parse_choice("ort-cpu")
    assert plain.text == f"ort-cpu:{KNOWN['ort'].schemes[0]}" and plain.shadow and not plain.rotated
    full = parse_choice("ort-cpu:w8a8:rotate:no-shadow")
    assert full.rotated and not full.shadow and full.scheme == SCHEMES["w8a8"]
    for text in ("ort-cpu:w8a8:rotate:no-shadow", "ort-cpu:w8a8:no-shadow", "ort-cpu:fp32", "ort-cpu:w4a16:rotate"):
        assert parse_choice(text).text == text
        assert parse_choice(parse_choice(text).text) == parse_choice(text)
    assert parse_choice("ort:rotate").text == f"ort-cpu:{KNOWN['ort'].schemes[0]}:rotate"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tpu", "unknown prompt backend 'tpu'; this machine has ort-cpu"),
        ("", "unknown prompt backend ''"),
        ("ort-npu", "unknown prompt backend 'ort-npu'"),
        ("ort-cpu:w2a2", "unknown scheme 'w2a2'; choose one of fp32, fp16, w8a8"),
        ("ort-cpu:", "unknown scheme ''"),
        ("ort-cpu:w8a8:fast", "unknown 'fast' in 'ort-cpu:w8a8:fast'; after the scheme may come rotate, no-shadow and"),
        ("ort-cpu:rotate:w8a8", "unknown 'w8a8'"),
        ("kernels:w8a8", "unknown prompt backend 'kernels'"),
    ],
)
def test_what_is_unknown_is_named(text, message):
    with pytest.raises(UsageError, match=message):
        parse_choice(text)


def test_a_provider_of_another_system(monkeypatch):
    monkeypatch.setattr(providers.platform, "system", lambda: "Linux")
    found = providers.find_devices.__wrapped__()
    monkeypatch.setattr(providers, "find_devices", lambda: found)
    for text in ("coreml", "coreml-npu:fp16"):
        with pytest.raises(
            UsageError, match=f"no device for the prompt backend '{text.split(':')[0]}': only on Darwin"
        ):
            parse_choice(text)
    reasons = {each.name: each.reason for each in found[1]}
    assert reasons["dml"] == "only on Windows" and reasons["nnapi"] == "only on Android"
    assert found[0][0].name == "ort-cpu" and set(reasons).isdisjoint(d.kind.name for d in found[0])


def test_schemes_fit_the_provider():
    assert fit_scheme(KNOWN["ort"], SCHEMES["w8a8"]) is SCHEMES["w8a8"]
    assert fit_scheme(KNOWN["qnn"], SCHEMES["fp16"]) is SCHEMES["fp16"]
    assert fit_scheme(KNOWN["qnn"], SCHEMES["w8a8"]).results == "u8"
    narrowed = fit_scheme(KNOWN["qnn"], SCHEMES["w4a16"])
    assert (narrowed.results, narrowed.block) == ("u16", 0)
    for kind in KNOWN.values():
        assert kind.schemes and all(scheme in SCHEMES for scheme in kind.schemes)


# -- libraries --------------------------------------------------------------------------------------------------


def test_without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnsupportedError, match=r"cannot be loaded.*pip install onnxruntime"):
        providers.find_devices.__wrapped__()
    with pytest.raises(UnsupportedError, match=r"pip install onnxruntime"):
        calibrate_model("anything")


def test_a_library_that_cannot_be_loaded(tmp_path, monkeypatch):
    """A plugin's package is here, its library is not one."""
    package = tmp_path / "onnxruntime_ep_webgpu"
    package.mkdir()
    library = tmp_path / "libbroken.so"
    library.write_bytes(b"not a library")
    (package / "__init__.py").write_text(f"def get_library_path():\n    return {str(library)!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    devices, absent = providers.find_devices.__wrapped__()
    (reason,) = (each.reason for each in absent if each.name == "webgpu")
    assert reason.startswith("onnxruntime_ep_webgpu is installed, but its library cannot be used: ")
    assert "libbroken.so" in reason and "\n" not in reason
    assert devices[0].name == "ort-cpu"
    (package / "__init__.py").write_text("raise RuntimeError('wrong processor')\n")
    monkeypatch.delitem(sys.modules, "onnxruntime_ep_webgpu")
    _, absent = providers.find_devices.__wrapped__()
    assert any(each.name == "webgpu" and "wrong processor" in each.reason for each in absent)


def test_an_absent_plugin_says_what_brings_it(monkeypatch):
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda name: None)
    assert providers._why(KNOWN["qnn"]) == "not installed: pip install 'edgerun[qnn]'"
    assert providers._why(KNOWN["webgpu"]) == "not installed: pip install onnxruntime-ep-webgpu"


# -- graphs that are refused ------------------------------------------------------------------------------------


def one_node(path: Path, op: str, domain: str = "") -> Path:
    node = onnx.helper.make_node(op, ["x"], ["y"], domain=domain)
    ends = [[onnx.helper.make_tensor_value_info(name, FLOAT, [2])] for name in "xy"]
    opsets = [onnx.helper.make_opsetid("", 21), *([onnx.helper.make_opsetid(domain, 1)] if domain else [])]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", *ends), opset_imports=opsets, ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_node_that_nobody_takes(tmp_path):
    device = device_named("ort")
    with pytest.raises(UnsupportedError, match=r"ort-cpu refuses odd.onnx: .*nobody:Odd"):
        open_session(device, one_node(tmp_path / "odd.onnx", "Odd", "nobody"), session_options(device, 1))


def test_a_provider_that_fails_is_not_replaced(tmp_path, capfd):
    """onnxruntime's Python session would print, and go on with the CPU."""
    kind = ProviderKind("gone", "GoneExecutionProvider")
    device = Device(kind, "npu", "", "")
    with pytest.warns(UserWarning, match="GoneExecutionProvider"), pytest.raises(UnsupportedError) as refusal:
        open_session(device, one_node(tmp_path / "neg.onnx", "Neg"), session_options(device, 1))
    assert "gone-npu refuses neg.onnx" in str(refusal.value) and "GoneExecutionProvider" in str(refusal.value)
    assert capfd.readouterr().out == ""


def test_a_refusal_comes_before_any_prompt(models, tmp_path, monkeypatch):
    """All graphs are opened at the start; what was open is closed, and the kernels go on."""
    model = models("llama")
    real = sessions.open_session

    def refuse(device, path, *args, **more):
        if "layer-002" in path.name:
            raise UnsupportedError(f"{device.name} refuses {path.name}: no such operator")
        return real(device, path, *args, **more)

    monkeypatch.setattr(sessions, "open_session", refuse)
    with pytest.raises(UnsupportedError, match="ort-cpu refuses layer-002-.*no such operator"):
        open_backend(model.gguf, model.decoder, parse_choice("ort-cpu:fp32"), tokens(99), tmp_path, threads=1)
    assert model.decoder.prompt_backend is None


def compiling(monkeypatch) -> tuple[Device, list[str]]:
    """The CPU as a provider that writes compiled graphs, and what it has compiled."""
    device, compiled = device_named("ort"), []
    real = sessions.compile_graph

    def compile_graph(device, path, out, more=None):
        compiled.append(path.name)
        whole = onnx.load(path)  # with its weights, from beside it
        onnx.save(whole, out)
        checked = out.with_name("checked.onnx")
        real(device, out, checked)  # onnxruntime's compiler takes it too
        checked.unlink()

    monkeypatch.setattr(sessions, "compile_graph", compile_graph)
    return replace(device, kind=replace(device.kind, context=True), version="1.0"), compiled


def test_compiled_graphs_are_kept_and_made_again(models, tmp_path, monkeypatch):
    from edgerun.prefill.backend import OnnxBackend

    model, ids = models("llama"), tokens(40)
    want = model.logits(ids)
    built = build(model, tmp_path)
    device, compiled = compiling(monkeypatch)

    def run(on: Device) -> None:
        with attached(OnnxBackend(model.spec, built, Sessions(built, on, threads=1)), model.decoder):
            np.testing.assert_allclose(model.logits(ids), want, atol=1e-3)

    run(device)
    assert len(compiled) == 6
    run(device)
    assert len(compiled) == 6, "kept"
    folder = built.folder / "ort-cpu-1.0"
    (folder / compiled[0]).write_bytes(b"of another age")
    run(device)
    assert compiled[6:] == [compiled[0]], "made again, that one only"
    run(replace(device, version="2.0"))
    assert len(compiled) == 13 and (built.folder / "ort-cpu-2.0").is_dir(), "another version, another folder"
    assert not [path.name for path in folder.iterdir() if not path.name.startswith("layer-")]


def test_a_ladder_is_compiled_together(models, tmp_path, monkeypatch):
    from edgerun.prefill.backend import OnnxBackend

    model, ids = models("llama"), tokens(150)
    want = model.logits(ids)
    built = build(model, tmp_path, sizes=(32, 128))
    device = device_named("ort")
    device = replace(device, kind=replace(device.kind, context=True, sharing={"share": "1"}), version="1.0")
    made = []

    def compile_ladder(device, paths, folder, more=None):
        made.append([path.name for path in paths])
        for path in paths:
            onnx.save(onnx.load(path), folder / path.name)

    monkeypatch.setattr(sessions, "compile_ladder", compile_ladder)

    def run() -> None:
        with attached(OnnxBackend(model.spec, built, Sessions(built, device, threads=1)), model.decoder):
            np.testing.assert_allclose(model.logits(ids), want, atol=1e-3)

    run()
    assert len(made) == 6 and made[0] == ["layer-000-qkv-32.onnx", "layer-000-qkv-128.onnx"]
    run()
    assert len(made) == 6, "kept"
    (built.folder / "ort-cpu-1.0" / "layer-000-qkv" / made[0][1]).write_bytes(b"of another age")
    run()
    assert made[6:] == [made[0]], "made again, that ladder only"
    assert len(list((built.folder / "ort-cpu-1.0").iterdir())) == 6, "nothing else is left"


def test_a_compiler_that_refuses(models, tmp_path, monkeypatch):
    model = models("llama")
    built = build(model, tmp_path)
    device, _ = compiling(monkeypatch)

    def refuse(*args, **more):
        raise UnsupportedError("ort-cpu refuses it: op 3 is too wide")

    monkeypatch.setattr(sessions, "compile_graph", refuse)
    with pytest.raises(UnsupportedError, match="op 3 is too wide"):
        Sessions(built, device, threads=1).open_all(model.spec)
    assert not list((built.folder / "ort-cpu-1.0").iterdir())


def test_a_device_that_only_compiles(monkeypatch):
    device = Device(KNOWN["qnn"], "cpu", "Qualcomm", "1")
    monkeypatch.setattr(providers, "find_devices", lambda: ((device,), ()))
    with pytest.raises(UsageError, match="qnn can compile for its NPU on this machine, but there is none to run on"):
        device_named("qnn")


def test_closed_sessions_open_again(models, tmp_path):
    model, ids = models("llama"), tokens(40)
    backend = ort_backend(model, build(model, tmp_path))
    with attached(backend, model.decoder):
        want = model.logits(ids)
        backend.close()
        assert np.array_equal(model.logits(ids), want)


# -- what was calibrated ----------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path) -> Path:
    return write(INSTANCES["llama"], tmp_path / "model.gguf")


def calibrated(path: Path, choice: str, **more: str) -> Path:
    """As if `choice` had been found best with these versions."""
    with LLM(path, prefill="kernels") as llm, open_gguf(path) as gguf:
        kept = calibration_path(prefill_dir(), content_digest(gguf, prefill_dir()), "resident")
        made = made_with(llm.engine.decoder.kernels, "resident") | more
        rows = (Row(choice, 256, 0.5, None, 0.01), Row("kernels", 256, 1.0), Row("qnn-npu:w8a8", 256, refused="no"))
        save_calibration(kept, Calibration(made, rows, choice, "measured", 17))
        assert load_calibration(kept) == Calibration(made, rows, choice, "measured", 17)
    return kept


def opened(path: Path, prefill: str = "auto"):
    """The name of what runs its prompts, from how many tokens on, and the notices."""
    events: list = []
    with LLM(path, prefill=prefill, events=events.append) as llm:
        backend = llm.engine.decoder.prompt_backend
        llm.logits(tokens(20))
        if backend is not None:
            assert backend.timeline.backend_s > 0
        about = (None, None) if backend is None else (backend.name, backend.least_tokens)
        return *about, [each.text for each in events if isinstance(each, Notice)]


def test_auto_takes_what_was_calibrated(path):
    assert opened(path)[0] is None, "nothing is known"
    calibrated(path, "ort-cpu:w8a8")
    assert opened(path) == ("ort-cpu:w8a8", 17, [])
    assert opened(path, "kernels")[0] is None
    assert opened(path, "ort-cpu:fp32")[0] == "ort-cpu:fp32"
    calibrated(path, "kernels")
    assert opened(path) == (None, None, [])


def test_auto_goes_on_without_a_backend_that_is_gone(path):
    calibrated(path, "coreml-npu:fp16")
    name, _, notices = opened(path)
    assert name is None and len(notices) == 1
    assert notices[0].startswith("prompts run on the kernels, not on coreml-npu:fp16 as calibrated: no device for")


def test_auto_goes_on_without_onnxruntime(path, monkeypatch):
    """It was there when it was calibrated."""
    calibrated(path, "ort-cpu:w8a8")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(providers, "find_devices", providers.find_devices.__wrapped__)
    name, _, notices = opened(path)
    assert name is None and len(notices) == 1 and "pip install onnxruntime" in notices[0]
    with pytest.raises(UnsupportedError, match="pip install"):
        opened(path, "ort-cpu:w8a8")


def test_auto_goes_on_when_the_disk_is_full(path, monkeypatch):
    calibrated(path, "ort-cpu:w8a8")

    def full(*args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgerun.prefill.opening.build_model", full)
    name, _, notices = opened(path)
    assert name is None and "No space left" in notices[0]
    with pytest.raises(OSError, match="No space left"):
        opened(path, "ort-cpu:w8a8")


@pytest.mark.parametrize("more", [{"onnxruntime": "0.1"}, {"kernels": "other x9"}, {"qnn-npu": "1"}])
def test_a_calibration_of_other_versions_is_ignored(path, more):
    calibrated(path, "ort-cpu:w8a8", **more)
    assert opened(path) == (None, None, [])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"rows": 1}', '{"made_with": {}, "rows": [{}]}', "\x00"])
def test_a_damaged_calibration_is_ignored(path, text):
    calibrated(path, "ort-cpu:w8a8").write_text(text)
    assert opened(path) == (None, None, [])


def test_a_copy_of_the_weights_must_fit(path, monkeypatch):
    monkeypatch.setattr(Device, "copies_weights", True)
    assert opened(path, "ort-cpu:w8a8")[0] == "ort-cpu:w8a8", "there is room"
    monkeypatch.setattr("edgerun.api.prefill.room_bytes", lambda plan: 10_000)
    with pytest.raises(DoesNotFitError, match="own copy of the weights.*--memory, or use --prefill kernels"):
        opened(path, "ort-cpu:w8a8")
    calibrated(path, "ort-cpu:w8a8")
    name, _, notices = opened(path)
    assert name is None and "own copy of the weights" in notices[0]


def test_others_wait_no_longer_than_was_stated(path, nothing_calibrated):
    """On a backend steps are of one length, so it must be known beforehand; the kernels' follow from what they take."""
    choice = "ort-cpu:w8a8"
    with pytest.raises(UsageError, match="run `edgerun calibrate`"):
        LLM(path, tpot_s=0.5, prefill=choice)
    kept = calibrated(path, choice)
    found = load_calibration(kept)
    rows = tuple(Row(choice, tokens, tokens / 100, None, 0.01) for tokens in (32, 128, 256))
    save_calibration(kept, replace(found, rows=rows))
    for tpot_s, step in ((9.0, 256), (2.0, 128), (1.28, 128), (0.5, 32), (0.1, 1)):
        with LLM(path, tpot_s=tpot_s) as llm:
            assert llm.engine.decoder.prompt_backend is not None
            assert llm.engine._step_tokens == step
            assert llm.logits(tokens(100)).shape == (100, llm.vocab_size)
    with LLM(path, tpot_s=0.1, prefill="kernels") as llm:
        assert llm.engine._step_tokens == 256


def test_nothing_of_onnx_is_imported_without_need(path, user_home, nothing_calibrated):
    """Loading a model with nothing calibrated does not cost onnxruntime's start."""
    code = (
        "import sys; from edgerun import LLM; llm = LLM(sys.argv[1], kernels='portable'); llm.logits([1, 2, 3]);"
        "assert not {'onnx', 'onnxruntime', 'edgerun.prefill.backend'} & set(sys.modules); llm.close()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
