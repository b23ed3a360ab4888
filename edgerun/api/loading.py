"""From a model's name to an engine that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.engine import Engine
from edgerun.engine.drafts import MOST_DRAFTED
from edgerun.engine.shortage import told_as_shortage
from edgerun.errors import EdgerunError, UnsupportedError, UsageError
from edgerun.events import EventSink, Notice, ignore
from edgerun.options import LoadOptions, as_text, refused
from edgerun.paths import kind_of, user_path

if TYPE_CHECKING:
    from edgerun.engine.engine import MakeDrafter
    from edgerun.formats.gguf import TensorInfo
    from edgerun.models import Decoder, ModelSpec
    from edgerun.planning import MemoryPlan

DEFAULT_CONTEXT = 4096
_STEPS = ((120_000_000, 256), (300_000_000, 128))  # weights in a layer at most, tokens


@told_as_shortage("loading the model")
def load_engine(
    model: str | Path, options: LoadOptions, *, draft: MakeDrafter | None = None, reserved_bytes: int = 0
) -> tuple[Engine, Path, Callable[[], None]]:
    """Open, check and load a model -> the engine, the file's path, and what releases it all.

    draft: guesses what it will say; for that `reserved_bytes` of the memory are kept.

    Refuses before reading any weight when the memory does not suffice (DoesNotFitError).
    """
    from edgerun.api.power import attach_throttle
    from edgerun.api.prefill import BACKEND_BYTES, attach_backend, known_calibration, plan_backend, step_tokens_within
    from edgerun.api.weights import kv_options, load_kernels_for, open_store, plan_weights
    from edgerun.formats.gguf import open_gguf
    from edgerun.kernels import load_sizes
    from edgerun.kv import KvLedger
    from edgerun.models import Decoder, load_spec
    from edgerun.planning.slow_types import slow_types_notice
    from edgerun.weights.identity import identify

    events, n_bytes, kv = options.events, options.memory_bytes, kv_options(options.kv)
    path = find_model(model, events)
    with ExitStack() as stack:
        gguf = stack.enter_context(open_gguf(path))
        spec = windowed(load_spec(gguf), options.window, options.sinks)
        for text in spec.unused:
            events(Notice(text))
        n_context = choose_context(options.context, spec, gguf.metadata, endless=options.window is not None)
        asked_bytes = reserved_bytes + (0 if options.prefill in ("auto", "kernels") else BACKEND_BYTES)
        plan_weights(  # refuse early
            gguf,
            spec,
            context=n_context,
            memory_bytes=n_bytes,
            kernels=options.kernels,
            reserved_bytes=asked_bytes,
            kv=kv,
        )
        words = load_words(gguf.metadata, stack, events)
        # before memory is divided: what compiling them takes must be there
        impl = load_kernels_for(spec, options.kernels, threads=options.n_threads, events=events, kv=kv)
        stack.callback(impl.close)

        def planned(backend_bytes: int) -> MemoryPlan:
            return plan_weights(
                gguf,
                spec,
                context=n_context,
                memory_bytes=n_bytes,
                kernels=impl,
                reserved_bytes=reserved_bytes + backend_bytes,
                kv=kv,
            )

        wanted, plan = plan_backend(options.prefill, gguf, spec, impl, planned, events)
        notice = slow_types_notice(spec.tensors, load_sizes(options.kernels))
        if notice and impl.name != "reference":  # there everything is slow, as was asked for
            events(Notice(notice))
        store, close_store = open_store(gguf, spec, impl, plan, prefetch=options.prefetch, events=events)
        stack.callback(close_store)
        ledger = KvLedger(plan.kv_limit_bytes, store.others_hold)
        stack.callback(ledger.release_all)
        farthest = n_context if options.window is None else min(n_context, options.window + options.sinks)
        decoder = Decoder(spec, store, impl, context=farthest, kv_ledger=ledger, kv=kv)
        attach_throttle(decoder, options, stack)
        if wanted is not None:
            stack.callback(attach_backend(wanted, gguf, decoder, words.tokenizer, plan, events=events))
        step_tokens = plan.wave_tokens or choose_step_tokens(spec.tensors, spec.n_layers)
        if decoder.prompt_backend is not None:  # its steps are all of one length, found beforehand
            if not plan.wave_tokens:
                step_tokens = max(step_tokens, decoder.prompt_backend.wave_tokens)
            if options.tpot_s is not None:
                known = known_calibration(gguf, impl, plan.mode)
                step_tokens = min(step_tokens, step_tokens_within(known, options.tpot_s))
        engine = Engine(
            decoder,
            words.tokenizer,
            context=n_context,
            template=words.template,
            no_tokenizer=words.no_tokenizer,
            no_template=words.no_template,
            seed=options.seed,
            step_tokens=step_tokens,
            tpot_s=options.tpot_s,
            reuse_steps=decoder.prompt_backend is not None,
            context_shift=options.context_shift,
            draft=draft,
            most_drafted=_most_drafted(decoder),
            identity=lambda: identify(gguf),
            reply_format=reply_format(words, options),
            plan=plan,
            events=events,
        )
        release = stack.pop_all().close
    return engine, path, release


@dataclass(frozen=True)
class Words:
    """What turns text into ids and messages into text; None, and why, where the file does not say."""

    tokenizer: Any
    no_tokenizer: str
    template: Any
    no_template: str


def load_words(metadata: Mapping[str, Any], stack: ExitStack, events: EventSink) -> Words:
    """A file's tokenizer and template, which `stack` closes."""
    tokenizer, no_tokenizer = _tokenizer(metadata)
    template, no_template = None, "the model has no tokenizer"
    if tokenizer is not None:
        for text in tokenizer.notices:
            events(Notice(text))
        template, no_template = _template(metadata, tokenizer)
    if template is not None:
        stack.callback(template.close)
        if template.name != "fallback":  # such a model was made to chat
            template.start()
    return Words(tokenizer, no_tokenizer, template, no_template)


def reply_format(words: Words, options: LoadOptions) -> Any:
    """How the model's replies are taken apart; None: they are nothing but answers."""
    from edgerun.text.replies import find_reply_format

    template, tokenizer = words.template, words.tokenizer
    if template is None or options.replies != "auto":
        return None
    with_tools = "" if template.with_tools is None else template.with_tools.source
    return find_reply_format(template.source + with_tools, lambda text: tokenizer.token_id(text) is not None)


def find_model(model: str | Path, events: EventSink = ignore) -> Path:
    """A file's path as it is. Any other name (a directory, an alias, `org/repo:quant`) is the hub's: from its
    cache, or downloaded."""
    path = model_path(model)
    kind = kind_of(path)
    if kind == "file" or (isinstance(model, Path) and kind != "directory"):
        return path
    from edgerun.hub import resolve

    return resolve(model, events=events)


def model_path(model: str | Path) -> Path:
    """A model's name as a path, whether there is one or not. UsageError for what is no name at all."""
    if not isinstance(model, Path) and not as_text(model):
        raise refused("model", "the path of a GGUF file, a pathlib.Path too, or a name that the hub knows", model)
    return user_path(model)


def windowed(spec: ModelSpec, window: int | None, sinks: int) -> ModelSpec:
    """The model with the window that was asked for. Raises as `with_window`."""
    from edgerun.models.window import with_window

    return spec if window is None else with_window(spec, window, sinks)


def choose_context(asked: int | None, spec: ModelSpec, metadata: Mapping[str, Any], *, endless: bool = False) -> int:
    """How many positions a session gets: what was asked for, or the trained context but at most 4096. endless: with a
    window there is nothing that they would have to fit in.

    UsageError for more than the model can do: its trained context, or that times its RoPE scaling.
    """
    from edgerun.models.window import ENDLESS

    trained = spec.context_length
    if asked is None:
        return ENDLESS if endless else min(trained, DEFAULT_CONTEXT)
    factor = metadata.get(f"{spec.architecture}.rope.scaling.factor")
    original = metadata.get(f"{spec.architecture}.rope.scaling.original_context_length")
    most = ENDLESS if endless else trained
    if isinstance(factor, float) and isinstance(original, int) and factor > 1:
        most = max(most, int(original * factor))
    if asked > most:
        raise UsageError(f"a context of {asked} is more than the {most} tokens that this model was made for")
    return asked


def choose_step_tokens(tensors: Mapping[str, TensorInfo], n_layers: int) -> int:
    """Tokens of a prompt in one step: fewer for models with large layers, so that a layer, after which a
    generation can be cancelled, takes a fraction of a second. Experts count fully: many tokens need them all.

    Follows from the model alone: a measured pace would make results depend on what else the machine does.
    """
    weights = sum(prod(info.shape) for name, info in tensors.items() if name.startswith("blk."))
    per_layer = weights // max(1, n_layers)
    return next((step for most, step in _STEPS if per_layer <= most), 64)


def _most_drafted(decoder: Decoder) -> int:
    """Guesses in a step: not so many that they would go through a prompt's backend, whose arithmetic is another."""
    backend = decoder.prompt_backend
    return MOST_DRAFTED if backend is None else max(0, min(MOST_DRAFTED, backend.least_tokens - 2))


def _tokenizer(metadata: Mapping[str, Any]) -> tuple[Any, str]:
    from edgerun.text import load_tokenizer

    try:
        return load_tokenizer(metadata), ""
    except UnsupportedError as error:
        return None, str(error)


def _template(metadata: Mapping[str, Any], tokenizer: Any) -> tuple[Any, str]:
    from edgerun.text import load_chat_template

    try:
        return load_chat_template(metadata, tokenizer), ""
    except EdgerunError as error:  # the model still completes text
        return None, str(error)
