"""`--window` as a user types it: more tokens than the model was made for, which is 512."""

from __future__ import annotations

import json

from edgerun import LLM


def test_a_story_goes_on_beyond_what_the_model_was_made_for(run):
    with LLM("tales", window=96, sinks=4) as llm:
        said = llm.complete("Once upon a time", max_tokens=700, ignore_eos=True, seed=1)
        assert said.finish_reason == "length" and len(said.token_ids) == 700
        again = llm.complete("Once upon a time", max_tokens=700, ignore_eos=True, seed=1)
        assert again.token_ids == said.token_ids
    done = run("run", "tales", "Once upon a time there was " + "a very " * 300 + "old house", "--window", 96, "-n", 8)
    assert done.exit_code == 0, done.stderr


def test_the_plan_is_of_the_window(run):
    plans = [json.loads(run("plan", "tales", "--json", "--window", 64, "-c", c).stdout) for c in (4000, 400_000)]
    assert plans[0]["memory"]["kv_bytes"] == plans[1]["memory"]["kv_bytes"]


def test_a_window_that_the_model_cannot_have(run):
    done = run("run", "tales", "hello", "--window", 4000)
    assert done.exit_code == 2 and "more than the 512 that this model was made for" in done.stderr
    done = run("run", "tales", "hello", "--window", 3)
    assert done.exit_code == 2 and "window" in done.stderr
