"""The options of sampling: what each may be. `engine.SamplingParams` says what they do, and has their defaults."""

from __future__ import annotations

from collections.abc import Mapping

from edgerun.options.kinds import Callables, Flag, Kind, Number, Texts, TokenBias, Whole

LARGEST_SEED = 2**64 - 1

SAMPLING: Mapping[str, Kind] = {
    "max_tokens": Whole(0, words=(None,)),
    "temperature": Number(0),
    "top_k": Whole(0),
    "top_p": Number(0, 1),
    "min_p": Number(0, 1),
    "typical_p": Number(0, 1),
    "repeat_penalty": Number(0, above=True),
    "frequency_penalty": Number(),
    "presence_penalty": Number(),
    "repeat_last_n": Whole(-1),
    "logit_bias": TokenBias(),
    "seed": Whole(0, LARGEST_SEED, words=(None,)),
    "stop": Texts(),
    "ignore_eos": Flag(),
    "logprobs": Whole(0, words=(None,)),
    "processors": Callables(),
}
