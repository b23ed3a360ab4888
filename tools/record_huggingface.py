"""Record transformers' logits for the checkpoints of tests/convert/hf_recorded.py.

    python tools/record_huggingface.py --make DIR [NAME ...]      in edgerun's environment: writes the checkpoints
    python tools/record_huggingface.py --from DIR                 in one with torch and transformers: logits of each

`--from` takes any folder of checkpoints and writes `logits.npy` (tokens, vocab) beside each; with `--keep` also into
tests/convert/golden.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "convert" / "golden"
IDS = list(range(3, 43))


def make(directory: Path, names: list[str]) -> None:
    """Write the checkpoints."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "convert")]
    from tests.convert.hf_recorded import RECORDED, write_recorded

    for name in names or RECORDED:
        write_recorded(directory / name, name)


def logits_of(checkpoint: Path) -> Any:
    """(tokens, vocab) f32 of IDS."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint)
    seeing = "text_config" in json.loads((checkpoint / "config.json").read_text())
    kind = transformers.AutoModelForImageTextToText if seeing else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(checkpoint, config=config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0].float().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--make", type=Path)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--keep", action="store_true")
    a = parser.parse_args()
    if a.make:
        make(a.make, a.names)
    elif a.source:
        for folder in sorted(path.parent for path in a.source.glob("*/config.json")):
            found = logits_of(folder)
            np.save(folder / "logits.npy", found)
            if a.keep:
                GOLDEN.mkdir(exist_ok=True)
                np.save(GOLDEN / f"{folder.name}.npy", found[3::4])
            print(f"recorded {folder.name}")
    else:
        parser.error("say --make DIR, then --from DIR")


if __name__ == "__main__":
    main()
