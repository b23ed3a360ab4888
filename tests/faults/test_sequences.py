"""Any sequence of calls, faults among them, on one model: an answer depends on what is asked and on nothing else."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.faults.harness import Harness
from tests.faults.questions import PROMPT, QUESTIONS, TURNS, Given, said
from tests.faults.seams import SEAMS, Listener, Shot
from tests.faults.subjects import SUBJECTS

_OPTIONS = {"max_tokens": 3, "temperature": 0.7, "logprobs": 1, "ignore_eos": True}
_ANSWERING = [name for name in SEAMS if name != "interrupt: signal"]  # that one is no function of its number


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return Harness(tmp_path_factory.mktemp("sequences"))


class Sequence(RuleBasedStateMachine):
    """One subject; some sessions with the turns that they took."""

    harness: Harness

    @initialize(subject=st.sampled_from(SUBJECTS))
    def load(self, subject):
        self.subject, self.listener = subject, Listener()
        self.llm = self.harness.models.load(subject, self.listener)
        self.right = self.harness.right(subject.name)
        self.sessions = [self.llm.session()]

    @rule(question=st.sampled_from(list(QUESTIONS)))
    def ask(self, question):
        assert QUESTIONS[question](self.llm, Given()) == self.right[question]

    @rule(seam=st.sampled_from(_ANSWERING), question=st.sampled_from(list(QUESTIONS)), at=st.integers(1, 400))
    def fail(self, seam, question, at):
        shot = Shot(at)
        try:
            with SEAMS[seam].arm(shot, self.listener):
                QUESTIONS[question](self.llm, shot.given)
        except SEAMS[seam].allowed:
            assert shot.fired or SEAMS[seam].ends_early

    @rule(chunks=st.integers(0, 4))
    def walk_away(self, chunks):
        """The reader takes some chunks and goes."""
        stream = self.llm.stream(PROMPT, seed=9, **_OPTIONS)
        for _ in range(chunks):
            if next(stream, None) is None:
                break
        stream.close()

    @rule(which=st.integers(0, 5), turn=st.sampled_from(TURNS), seed=st.integers(0, 3))
    def talk(self, which, turn, seed):
        """A session's turn is that of a new session that is given the same messages."""
        talk = self.sessions[which % len(self.sessions)]
        if len(talk.ids) > 60:
            return
        fresh = self.llm.session(messages=[*talk.messages])
        assert said(talk.chat(turn, seed=seed, **_OPTIONS)) == said(fresh.chat(turn, seed=seed, **_OPTIONS))

    @rule(which=st.integers(0, 5))
    def fork(self, which):
        if len(self.sessions) < 4:
            self.sessions.append(self.sessions[which % len(self.sessions)].fork())

    @rule(which=st.integers(0, 5), n=st.integers(0, 20))
    def rewind(self, which, n):
        talk = self.sessions[which % len(self.sessions)]
        talk.rewind(min(n, len(talk.ids)))

    @rule(which=st.integers(0, 5))
    def clear(self, which):
        self.sessions[which % len(self.sessions)].clear()

    @rule()
    def load_again(self):
        self.llm.close()
        self.load(self.subject)

    @invariant()
    def a_short_question_is_answered_rightly(self):
        if hasattr(self, "llm"):
            assert QUESTIONS["logits"](self.llm, Given()) == self.right["logits"]

    def teardown(self):
        if hasattr(self, "llm"):
            self.llm.close()


def test_sequences(harness):
    Sequence.harness = harness
    machine = Sequence.TestCase
    machine.settings = settings(
        max_examples=12,
        stateful_step_count=12,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    machine().runTest()
