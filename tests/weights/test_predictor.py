"""The predictor: every source learns, is judged, and speaks where it is best."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.weights.predictor import AFFINITY, ROUTER, ROUTER_TWO_AHEAD, TOKEN, ExpertPredictor

LAYERS, EXPERTS, USED, VOCAB = 4, 16, 2, 30


def ids(*values):
    return np.array(values, np.int32)


def step(predictor, token, chosen, router=None):
    """One token: what was expected of each layer when it was asked, (layer -> ids or None)."""
    told = dict(predictor.begin(ids(token)))
    said = []
    for layer, real in enumerate(chosen):
        if layer and router is not None:
            predictor.hear(layer, router[layer])
        said.append(told.get(layer) if layer == 0 else predictor.best(layer))
        predictor.chosen(layer, np.array([real], np.int32))
    return said


def by_token(token):
    """A model whose first two layers choose by the token and the others by the layer before."""
    first = ids(token % EXPERTS, (token + 5) % EXPERTS)
    chosen = [first, (first + 3) % EXPERTS]
    for _ in range(2, LAYERS):
        chosen.append((chosen[-1] * 7 + 1) % EXPERTS)
    return chosen


def test_tokens_and_affinity_take_over_where_the_router_is_wrong():
    predictor, rng = ExpertPredictor(LAYERS, EXPERTS, VOCAB), np.random.default_rng(0)
    wrong = [ids(0, 1)] * LAYERS
    for _ in range(600):
        token = int(rng.integers(VOCAB))
        real = by_token(token)
        said = step(predictor, token, real, [(each + 1) % EXPERTS for each in real])
    assert [set(guess.tolist()) for guess in said] == [set(each.tolist()) for each in real]
    assert (predictor.accuracy[TOKEN, :2] > 0.9).all()
    assert (predictor.accuracy[AFFINITY, 2:] > 0.9).all()
    assert (predictor.accuracy[ROUTER, 1:] < 0.1).all()
    for _ in range(300):  # a model that changes its mind: the statistics are found out, and nobody speaks
        said = step(
            predictor,
            int(rng.integers(VOCAB)),
            rng.permuted(np.tile(np.arange(EXPERTS), (LAYERS, 1)), axis=1)[:, :2],
            wrong,
        )
    assert said == [None] * LAYERS


def test_a_good_router_is_believed_from_the_start():
    predictor = ExpertPredictor(LAYERS, EXPERTS, VOCAB)
    predictor.begin(ids(3))
    assert predictor.best(1) is None
    predictor.hear(2, ids(4, 5), ROUTER_TWO_AHEAD)
    assert predictor.best(2).tolist() == [4, 5]
    predictor.hear(2, ids(6, 7))
    assert predictor.best(2).tolist() == [6, 7], "the nearer router knows better"
    predictor.begin(ids(4))
    assert predictor.best(2) is None, "guesses are of one token"


def test_a_good_router_is_compared_only_every_so_often_and_found_out_when_it_errs():
    predictor, rng = ExpertPredictor(LAYERS, EXPERTS, VOCAB), np.random.default_rng(0)

    def steps(count, off):
        for _ in range(count):
            token = int(rng.integers(VOCAB))
            real = by_token(token)
            step(predictor, token, real, [(each + off) % EXPERTS for each in real])

    steps(100, 0)
    assert (predictor.accuracy[ROUTER, 1:] > 0.9).all()
    before = predictor.judged[ROUTER].copy()
    steps(80, 0)
    assert (predictor.judged[ROUTER, 1:] - before[1:] == 10).all()
    steps(400, 1)
    assert (predictor.accuracy[ROUTER, 1:] < 0.1).all()
    assert (predictor.accuracy[AFFINITY, 2:] > 0.9).all(), "learned as soon as it was needed"


def test_prompts_teach_too():
    predictor = ExpertPredictor(LAYERS, EXPERTS, VOCAB)
    predictor.accuracy[TOKEN] = 1.0
    tokens = ids(1, 2, 3, 2)
    assert predictor.begin(tokens) == []
    chosen = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.int32)
    predictor.chosen(0, chosen)
    assert [(layer, guess.tolist()) for layer, guess in predictor.begin(ids(3))] == [(0, [5, 6])]
    assert [(layer, guess.tolist()) for layer, guess in predictor.begin(ids(2))] == [(0, [7, 8])], (
        "the last time counts"
    )
    assert predictor.begin(ids(9)) == []


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_routing_is_survived(data):
    predictor = ExpertPredictor(LAYERS, EXPERTS, VOCAB)
    for _ in range(data.draw(st.integers(1, 12))):
        tokens = np.array(data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5)), np.int32)
        predictor.begin(tokens)
        for layer in range(data.draw(st.integers(0, LAYERS))):  # a cancelled token ends early
            chosen = data.draw(st.permutations(range(EXPERTS)))[:USED]
            predictor.hear(layer, np.array(chosen, np.int32))
            guess = predictor.best(layer)
            assert guess is None or (len(guess) == USED and (guess >= 0).all() and (guess < EXPERTS).all())
            predictor.chosen(layer, np.array([chosen] * len(tokens), np.int32))
    assert (predictor.accuracy[predictor.judged == 0] > 0).all()
    assert ((predictor.accuracy >= 0) & (predictor.accuracy <= 1)).all()
