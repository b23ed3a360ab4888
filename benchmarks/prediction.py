"""How well a mixture's experts are predicted, and what that brings its cache, on a text of yours.

python benchmarks/prediction.py MODEL.gguf TEXT.txt [--slots 20] [--tokens 2400]

Prints, with prediction on and off, which of the experts that were chosen were there, on their way, or missing, and how
often each source named them in each layer. Tokens are fed one by one, in windows of 400.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from edgerun.formats.gguf import open_gguf
from edgerun.kernels import load_kernels
from edgerun.models import Decoder, load_spec
from edgerun.text import load_tokenizer
from edgerun.weights import StreamedExpertStore

WINDOW = 400


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--slots", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=2400)
    a = parser.parse_args()
    kernels = load_kernels("auto")
    ids = load_tokenizer(a.model).encode(a.text.read_text(encoding="utf-8"))[: a.tokens]
    with open_gguf(a.model) as gguf:
        spec = load_spec(gguf)
        print(f"{len(ids)} tokens, {a.slots} of {spec.n_layers * spec.n_experts} experts cached")
        for predict in (True, False):
            with closing(
                StreamedExpertStore(gguf, spec, kernels, slots=a.slots, wave_tokens=256, predict=predict)
            ) as store:
                decoder = Decoder(spec, store, kernels)
                for low in range(0, len(ids), WINDOW):
                    cache = decoder.new_cache(WINDOW)
                    for token in ids[low : low + WINDOW]:
                        decoder.forward([token], cache)
                stats = store.statistics()
                uses = stats["hits"] + stats["late"] + stats["misses"]
                shares = ", ".join(f"{name} {stats[name] / uses:.3f}" for name in ("hits", "late", "misses"))
                print(f"prediction {'on' if predict else 'off'}: {shares}")
                for source, row in store.prediction_accuracy().items():
                    print(f"  {source:18s}" + "".join("      –" if each is None else f"{each:7.2f}" for each in row))
    kernels.close()


if __name__ == "__main__":
    main()
