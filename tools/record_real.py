"""Record what llama.cpp answers with the real models: run in an environment with llama-cpp-python.

    python tools/record_real.py FOLDER

FOLDER: where `python -m tools.fetch_real` put them. Writes tests/real/golden.json: of each prompt its ids, the logits
after the last of them (the highest by id, and the mean and deviation of all), and the ids that follow greedily.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import Llama

_OUT = Path(__file__).resolve().parent.parent / "tests" / "real" / "golden.json"
_PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was a little fox who",
    "def fibonacci(n):\n    ",
    "Müller fährt 1234 km nach Zürich; 東京 is far away.",
)
_FOLLOWING = 32
_HIGHEST = 10


def answers(path: Path) -> list[dict[str, Any]]:
    """One entry a prompt."""
    model = Llama(str(path), n_ctx=256, n_threads=2, logits_all=True, verbose=False)
    found = []
    for prompt in _PROMPTS:
        ids = model.tokenize(prompt.encode(), add_bos=True, special=False)
        model.reset()
        model.eval(ids)
        logits = np.array(model.scores[len(ids) - 1], np.float64)
        following: list[int] = []
        margins: list[float] = []
        for _ in range(_FOLLOWING):
            row = np.array(model.scores[model.n_tokens - 1])
            second, first = np.sort(row)[-2:]
            following.append(int(row.argmax()))
            margins.append(round(float(first - second), 3))
            model.eval([following[-1]])
        highest = np.argsort(-logits)[:_HIGHEST]
        found.append(
            {
                "prompt": prompt,
                "ids": ids,
                "highest": {int(i): round(float(logits[i]), 4) for i in highest},
                "mean": round(float(logits.mean()), 4),
                "deviation": round(float(logits.std()), 4),
                "following": following,
                "margins": margins,
            }
        )
    return found


if __name__ == "__main__":
    recorded = {path.name: answers(path) for path in sorted(Path(sys.argv[1]).glob("*.gguf"))}
    _OUT.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
