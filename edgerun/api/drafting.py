"""A model with somebody who guesses what it will say: see `engine.drafts`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.api.loading import choose_context, find_model, load_engine
from edgerun.errors import UsageError
from edgerun.options import LoadOptions, shown

if TYPE_CHECKING:
    from edgerun.engine import Engine
    from edgerun.engine.draft_model import DraftModel

LOOKUP = "lookup"
_TOKENS = "tokenizer.ggml.tokens"
_ENDS = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")


def load_with_draft(model: str | Path, options: LoadOptions) -> tuple[Engine, Path, Callable[[], None]]:
    """`load_engine`, and who guesses as `options.draft` says: nobody, what stands in the text itself ("lookup"), or a
    small model. UsageError where that has another vocabulary."""
    if options.draft is None:
        return load_engine(model, options)
    if options.draft == LOOKUP:
        from edgerun.engine.lookup import lookup

        return load_engine(model, options, draft=lookup)
    path = find_model(model, options.events)
    with ExitStack() as stack:
        guesser, n_bytes, release = _load_guesser(options.draft, path, options)
        stack.callback(release)
        engine, path, release = load_engine(path, options, draft=guesser.drafter, reserved_bytes=n_bytes)
        stack.callback(release)
        return engine, path, stack.pop_all().close


def _load_guesser(name: str, path: Path, options: LoadOptions) -> tuple[DraftModel, int, Callable[[], None]]:
    """The small model for the one at `path`, what it may still grow by, and what releases it."""
    from edgerun.engine.draft_model import DraftModel
    from edgerun.formats.gguf import open_gguf
    from edgerun.models import load_spec

    draft_path = find_model(name, options.events)
    with open_gguf(path) as gguf, open_gguf(draft_path) as draft:
        check_same_vocabulary(draft_path.name, draft.metadata, gguf.metadata)
        wanted = choose_context(options.context, load_spec(gguf), gguf.metadata, endless=options.window is not None)
        context = min(wanted, load_spec(draft).context_length)  # beyond its own it does not guess
    given = replace(options, draft=None, prefill="kernels", context=context, kv="f16", window=None, context_shift=False)
    engine, _, release = load_engine(draft_path, given)
    # One text's keys and values, that all requests share: whoever guesses again reads again what another's took. Where
    # others that are answered now have it all, there are no guesses, and looking for garbage at every step would help
    # nobody.
    ledger = engine.decoder.pages.ledger
    ledger.limit_bytes = engine.plan.context_bytes
    ledger.hurries = True
    return DraftModel(engine.decoder, context, engine.tokenizer.vocab_size), engine.plan.context_bytes, release


def check_same_vocabulary(name: str, draft: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """UsageError unless the same ids stand for the same tokens. The two are metadata of GGUF files."""
    ours, theirs = model.get(_TOKENS), draft.get(_TOKENS)
    if not ours or not theirs:
        raise UsageError(
            f"draft: a model that guesses needs the other's vocabulary, and one of the two has none: {name}"
        )
    if len(ours) != len(theirs):
        raise UsageError(
            f"draft: {name} has another vocabulary than the model: {len(theirs)} tokens, and the model {len(ours)}"
        )
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            raise UsageError(
                f"draft: {name} has another vocabulary than the model: token {i} is {shown(other)}, not {shown(one)}"
            )
    for key in _ENDS:
        if draft.get(key) != model.get(key):
            raise UsageError(f"draft: {name} has another vocabulary than the model: {key} differs")
