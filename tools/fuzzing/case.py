"""One case: a good file, damaged as its seed says, then loaded and run. What came of it, in one word."""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import edgerun.kernels
from edgerun import LLM
from edgerun.convert import convert_checkpoint
from edgerun.convert.quantize import quantize_gguf
from edgerun.errors import ContextLengthError, DoesNotFitError, EdgerunError, TemplateError, UsageError
from edgerun.formats.gguf import GgufFile, open_gguf
from edgerun.hub.info import metadata_table, show
from edgerun.kernels import Kernels
from edgerun.models import Decoder, ModelSpec, load_spec
from edgerun.text.template import ChatTemplate
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore, WeightStore
from edgerun.weights.packing import write_pack
from tools.fuzzing.corpus import Subject, copy_subject
from tools.fuzzing.mutations import damage_bytes, damage_gguf, damage_json, damage_safetensors
from tools.fuzzing.template_mutations import damage_template

GOOD = ("ok", "same")  # ran; ran and answered as the undamaged file does
PROMPT = (3, 1, 4, 1, 5, 9, 2)
_TEXT = "!"
_WEIGHTS_OF_KINDS = {"gguf": 12, "safetensors": 4, "tokenizer": 3, "llama2c": 2, "template": 2}


@dataclass(frozen=True)
class Outcome:
    """`word`: "ok", "same", "refused: CLASS", "converted, refused: CLASS", or what must not be: "wrong exception:
    CLASS", "streamed differs", "harmless change differs", "harmless change refused", and from whoever watches the
    process "crash", "hang", "over memory"."""

    kind: str
    word: str
    detail: str = ""

    @property
    def good(self) -> bool:
        """Whether edgerun did as it should."""
        return self.word in GOOD or self.word.startswith(("refused", "converted, refused"))


class Bench:
    """What all cases share: the good files, their answers, and kernels that are loaded once."""

    def __init__(self, subjects: Sequence[Subject], kernels: Kernels) -> None:
        self.kernels = kernels
        self._subjects = {kind: [each for each in subjects if each.kind == kind] for kind in _WEIGHTS_OF_KINDS}
        self._answers: dict[Path, bytes] = {}

    def warm_up(self) -> None:
        """Use the first good file once: what is imported late is imported now, and not by every process anew."""
        path = self._subjects["gguf"][0].path
        show(path)
        with _kernels_at_hand(self.kernels), LLM(path, context=8) as llm:
            llm.logits([1, 2])

    def run(self, seed: int, kinds: Sequence[str], keep: Path | None = None) -> Outcome:
        """The case of this seed. `keep`: a folder for its files."""
        rng = Random(seed)
        kind = rng.choices(kinds, [_WEIGHTS_OF_KINDS[each] for each in kinds])[0]
        subject = rng.choice(self._subjects[kind])
        with contextlib.ExitStack() as stack:
            folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
            path, harmless = self._damage(subject, folder, rng)
            return Outcome(kind, *self._judged(subject, path, harmless, rng))

    def _damage(self, subject: Subject, folder: Path, rng: Random) -> tuple[Path, bool]:
        path = copy_subject(subject, folder)
        other = rng.choice(self._subjects[subject.kind]).path
        match subject.kind:
            case "gguf":
                data, harmless = damage_gguf(path.read_bytes(), rng, other.read_bytes())
                path.write_bytes(data)
                return path, harmless
            case "template":
                path.write_text(damage_template(path.read_text(), rng))
            case "llama2c":
                target = path / rng.choice(("model.bin", "tokenizer.bin"))
                target.write_bytes(damage_bytes(target.read_bytes(), rng))
            case "tokenizer":
                target = path / rng.choice(("tokenizer.json", "tokenizer.json", "tokenizer_config.json"))
                target.write_bytes(damage_json(target.read_bytes(), rng, b"{}"))
            case _:
                target = path / rng.choice(("config.json", "config.json", "model.safetensors"))
                damage = damage_json if target.suffix == ".json" else damage_safetensors
                target.write_bytes(damage(target.read_bytes(), rng, (other / target.name).read_bytes()))
        return path, False

    def _judged(self, subject: Subject, path: Path, harmless: bool, rng: Random) -> tuple[str, str]:
        stage = ""
        try:
            if subject.kind == "template":
                _render(path)
                return "ok", ""
            if subject.kind != "gguf":
                out = path.parent / "out.gguf"
                convert_checkpoint(
                    path / "model.bin" if subject.kind == "llama2c" else path, out, quant=rng.choice(_QUANTS)
                )
                path, stage = out, "converted, "
            answer = self._use(path, rng)
        except EdgerunError as error:
            if harmless:
                return "harmless change refused", f"{subject.name}: {error}"
            if type(error) in (EdgerunError, UsageError):  # neither says that it is the file
                return f"wrong exception: {type(error).__name__}", f"{subject.name}: {_where(error)}"
            return f"{stage}refused: {type(error).__name__}", str(error)[:300]
        except _Differs as error:
            return "streamed differs", f"{subject.name}: {error}"
        except MemoryError as error:
            return "over memory", _where(error)
        except Exception as error:  # noqa: BLE001 - the point of it all
            return f"wrong exception: {type(error).__name__}", f"{subject.name}: {_where(error)}"
        if not harmless:
            return "ok", ""
        if answer != self._answer(subject.path):
            return "harmless change differs", subject.name
        return "same", ""

    def _answer(self, path: Path) -> bytes:
        if path not in self._answers:
            self._answers[path] = self._use(path, None)
        return self._answers[path]

    def _use(self, path: Path, rng: Random | None) -> bytes:
        """Load, run a prompt and two tokens, resident and streamed; the resident logits' bytes."""
        with open_gguf(path) as gguf:
            spec = load_spec(gguf)
            context = min(32, spec.context_length)
            prompt = [token % spec.vocab_size for token in PROMPT][: max(1, context - 2)]
            resident = ResidentStore(gguf, spec, self.kernels)
            want = _logits(spec, resident, self.kernels, prompt, context)
            if rng is not None and rng.random() < 0.1:
                write_pack(gguf, spec, self.kernels)
            streamed = _streamed(gguf, spec, self.kernels)
            try:
                got = _logits(spec, streamed, self.kernels, prompt, context)
            finally:
                streamed.close()
            if got != want:
                raise _Differs("streamed weights give other logits than resident ones")
        if rng is not None:
            self._through_the_library(path, rng)
        return want

    def _through_the_library(self, path: Path, rng: Random) -> None:
        """As an app would: what the file says of itself, its text, its plan."""
        show(path)
        metadata_table(path)
        if rng.random() < 0.1:
            quantize_gguf(path, path.with_name("again.gguf"), rng.choice(("Q8_0", "Q4_0", "F16", "Q4_K")))
        with _kernels_at_hand(self.kernels):
            with contextlib.suppress(DoesNotFitError):
                LLM(path, memory=rng.choice(("200M", "1G", "4G"))).close()
            with LLM(path) as llm:
                if not llm.engine.has_tokenizer or not llm.tokenize(_TEXT):
                    return  # nothing can be asked of it
                llm.complete(_TEXT, max_tokens=2, temperature=0)
                llm.complete(_TEXT, max_tokens=2, temperature=0.8, seed=1)
                try:
                    llm.chat([{"role": "user", "content": _TEXT}], max_tokens=2)
                except (TemplateError, ContextLengthError):
                    pass
                except UsageError as error:
                    if "prompt is empty" not in str(error):  # of a vocabulary that has no token for it
                        raise


_QUANTS = (None, None, "Q8_0", "F16", "Q4_0")


class _Differs(Exception):
    """Two ways to compute the same that do not agree."""


def _logits(spec: ModelSpec, store: WeightStore, kernels: Kernels, prompt: list[int], context: int) -> bytes:
    decoder = Decoder(spec, store, kernels, context=context)
    cache = decoder.new_cache(context)
    rows = [decoder.forward(prompt, cache, logits="all")]
    for token in (1, 2)[: context - len(prompt)]:
        rows.append(decoder.forward([token % spec.vocab_size], cache))
    logits = np.concatenate([row for row in rows if row is not None])
    return np.where(np.isnan(logits), np.float32(0), logits).tobytes() + np.isnan(logits).tobytes()


def _streamed(gguf: GgufFile, spec: ModelSpec, kernels: Kernels) -> WeightStore:
    if spec.n_experts:
        slots = 2 * spec.n_experts_used + 2
        return StreamedExpertStore(gguf, spec, kernels, slots=slots, wave_tokens=8, reader_threads=1)
    neurons = 24 if spec.sparse else 0
    return StreamedLayerStore(gguf, spec, kernels, pinned=[], wave_tokens=8, reader_threads=1, neuron_slots=neurons)


def _render(path: Path) -> None:
    template = ChatTemplate(path.read_text(), bos_token="<s>", eos_token="</s>")
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "What is 2 + 2?"},
    ]
    template.render(messages)
    template.render(messages, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])


@contextlib.contextmanager
def _kernels_at_hand(kernels: Kernels) -> Iterator[None]:
    """Models load with these kernels instead of their own, which take longer than most cases."""

    class Shared:
        def __getattr__(self, name: str) -> Any:
            return getattr(kernels, name)

        def close(self) -> None:
            """Others use them still."""

    original = edgerun.kernels.load_kernels
    edgerun.kernels.load_kernels = lambda *args, **options: Shared()
    try:
        yield
    finally:
        edgerun.kernels.load_kernels = original


def _where(error: BaseException) -> str:
    """The error and the lines of edgerun that it came through."""
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "edgerun" in frame.filename
    ]
    return f"{type(error).__name__}: {str(error)[:200]} [{' < '.join(frames[::-1][:5])}]"
