"""Device profiles: what a machine can do, in the numbers that predict a model's speed there. YAML, checked by a schema.

Those that come with edgerun lie in `profiles/` of the source tree, and beside this file where edgerun is installed: of
some the figures were measured, of the others they were published by others, with their sources, and they say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgerun.errors import FormatError, NotFoundError
from edgerun.planning.rates import TYPICAL_LAUNCH_S, AttentionRates, ProductRates, Rates
from edgerun.weights.catalog import Catalog

_INSTALLED = Path(__file__).parent / "profiles"  # `setup.py` puts them there
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "profiles"
_MOST_BYTES = 1 << 20
_MOST_ENTRIES = 256
_MOST_TEXT = 2000
_RATES = "decode_bytes_per_s", "prompt_ops_per_s"


@dataclass(frozen=True)
class DeviceProfile:
    """A machine. kind: "measured" there, or made of "published" figures, whose `sources` say where they stand.

    kernels: the set of instructions ("avx2", "neon"); memory_bandwidth: bytes/s by number of threads; disk_random:
    bytes/s of random reads by size in bytes; products: by type of weights; launch_s, cache_bytes: see `Rates`, 0 where
    that is not known; links: bytes/s to other devices by name;
    tdp_w, idle_w: of the processor by its data sheet, and measured when idle; energy: meters that can be read there.
    """

    name: str
    kind: Literal["measured", "published"]
    processor: str
    cores: int
    kernels: str
    memory_bytes: int
    memory_bandwidth: Mapping[int, float]
    disk_random: Mapping[int, float]
    products: Mapping[str, ProductRates]
    disk_sequential: float | None = None
    disk_direct: bool = True
    attention: AttentionRates | None = None
    launch_s: float = 0.0
    cache_bytes: int = 0
    features: tuple[str, ...] = ()
    links: Mapping[str, float] = field(default_factory=dict)
    energy: tuple[str, ...] = ()
    tdp_w: float | None = None
    idle_w: float | None = None
    sources: tuple[str, ...] = ()

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Of memory, with as many threads as give the most."""
        return max(self.memory_bandwidth.values())

    @property
    def peak_ops_per_s(self) -> float:
        """Of the products that are fastest."""
        return max(each.prompt_ops_per_s for each in self.products.values())

    def disk_bytes_per_s(self, piece_bytes: int) -> float:
        """Of random reads of this size: between measured sizes, by the logarithm; beyond them, as the nearest."""
        sizes = sorted(self.disk_random)
        if piece_bytes <= sizes[0]:
            return self.disk_random[sizes[0]]
        for low, high in zip(sizes, sizes[1:], strict=False):
            if piece_bytes <= high:
                share = math.log(piece_bytes / low) / math.log(high / low)
                return self.disk_random[low] * (1 - share) + self.disk_random[high] * share
        return self.disk_random[sizes[-1]]

    def rates(self, catalog: Catalog, piece_bytes: int) -> tuple[Rates, list[str]]:
        """For a model, and the types whose rates are taken from another type, since the profile has none of them: their
        decoding is bound by memory alike, their prompts by computing."""
        nearest = self.products.get("Q4_K") or self.products.get("Q4_0") or next(iter(self.products.values()))
        products, taken = {}, set()
        for info in catalog.multiplied():
            name = info.type.name
            for key in (name, f"{name} x {info.shape[-1]}"):
                products[key] = self.products.get(name, nearest)
            if name not in self.products:
                taken.add(name)
        rates = Rates(
            products,
            self.disk_bytes_per_s(piece_bytes),
            piece_bytes,
            self.attention,
            self.launch_s or TYPICAL_LAUNCH_S,
            self.cache_bytes,
        )
        return rates, sorted(taken)

    def as_yaml(self) -> str:
        """As `load_profile` reads it."""
        import yaml

        return yaml.safe_dump(_as_dict(self), sort_keys=False, allow_unicode=True, width=100)


def load_profile(path: Path) -> DeviceProfile:
    """NotFoundError, FormatError for what is no profile, with the place that is wrong."""
    import yaml

    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > _MOST_BYTES:
        raise FormatError(f"{path}: larger than a device profile may be")
    try:
        said = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise FormatError(f"{path}: no YAML: {str(error)[:200]}") from error
    try:
        return _profile(said)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def shipped_profiles() -> dict[str, Path]:
    """Those that come with edgerun, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def _profile(said: object) -> DeviceProfile:
    known = _Fields("the profile", said)
    products = _Fields("products", known.take("products"))
    bandwidth, disk = known.take("memory_bandwidth"), _Fields("disk", known.take("disk"))
    attention = known.take("attention", None)
    energy = _Fields("energy", known.take("energy", {}))
    found = DeviceProfile(
        name=known.text("name"),
        kind=known.one_of("kind", ("measured", "published")),
        processor=known.text("processor"),
        cores=known.whole("cores"),
        kernels=known.text("kernels"),
        memory_bytes=known.whole("memory_bytes"),
        memory_bandwidth=_by_number("memory_bandwidth", bandwidth),
        disk_random=_by_number("disk.random", disk.take("random")),
        disk_sequential=disk.number("sequential", None),
        disk_direct=disk.flag("direct", True),
        products={name: _product(f"products.{name}", products.take(name)) for name in products.names()},
        attention=None if attention is None else AttentionRates(*_pair("attention", attention)),
        launch_s=known.number("launch_s", 0.0) or 0.0,
        cache_bytes=int(known.number("cache_bytes", 0.0) or 0),
        features=known.texts("features"),
        links={
            str(name): _number(f"links.{name}", each)
            for name, each in _Fields("links", known.take("links", {})).items()
        },
        energy=energy.texts("meters"),
        tdp_w=energy.number("tdp_w", None),
        idle_w=energy.number("idle_w", None),
        sources=known.texts("sources"),
    )
    for fields in (known, disk, energy):
        fields.end()
    if not found.products:
        raise FormatError("products has no entry")
    if found.kind == "published" and not found.sources:
        raise FormatError("sources must say where published figures stand")
    return found


class _Fields:
    """A mapping of which every key must be asked for."""

    def __init__(self, where: str, said: object) -> None:
        if not isinstance(said, dict) or len(said) > _MOST_ENTRIES or not all(isinstance(key, str) for key in said):
            raise FormatError(f"{where} must be a mapping with names, got {_shown(said)}")
        self._where, self._said, self._asked = where, said, set[str]()

    def names(self) -> list[str]:
        return list(self._said)

    def items(self) -> list[tuple[str, object]]:
        return list(self._said.items())

    def take(self, name: str, *otherwise: object) -> object:
        self._asked.add(name)
        if name not in self._said:
            if otherwise:
                return otherwise[0]
            raise FormatError(f"{self._where} has no {name}")
        return self._said[name]

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str) or not 0 < len(value) <= _MOST_TEXT:
            raise FormatError(f"{name} must be a text, got {_shown(value)}")
        return value

    def one_of(self, name: str, words: tuple[str, ...]) -> Any:
        value = self.text(name)
        if value not in words:
            raise FormatError(f"{name} must be one of {', '.join(words)}, got {_shown(value)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.take(name, [])
        if not isinstance(value, list) or len(value) > _MOST_ENTRIES:
            raise FormatError(f"{name} must be a list of texts, got {_shown(value)}")
        if not all(isinstance(each, str) and len(each) <= _MOST_TEXT for each in value):
            raise FormatError(f"{name} must be a list of texts")
        return tuple(value)

    def whole(self, name: str) -> int:
        value = _number(name, self.take(name))
        if value != int(value) or value < 1:
            raise FormatError(f"{name} must be a whole number from 1 on, got {value}")
        return int(value)

    def number(self, name: str, otherwise: float | None) -> float | None:
        value = self.take(name, otherwise)
        return None if value is None else _number(name, value, zero=True)

    def flag(self, name: str, otherwise: bool) -> bool:
        value = self.take(name, otherwise)
        if not isinstance(value, bool):
            raise FormatError(f"{name} must be true or false, got {_shown(value)}")
        return value

    def end(self) -> None:
        unknown = set(self._said) - self._asked
        if unknown:
            raise FormatError(f"{self._where} has {', '.join(sorted(unknown))[:200]}, which no profile has")


def _shown(value: object) -> str:
    """Of what a stranger wrote, so much as fits a line: a list can be of many millions by naming itself, a number be
    longer than Python writes any."""
    if isinstance(value, str):
        return repr(value[:60])
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, list | dict | set | tuple):
        return f"a {type(value).__name__}"
    return repr(str(value)[:60])


def _number(where: str, value: object, *, zero: bool = False) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < 1e18
        or (not value and not zero)
    ):
        raise FormatError(f"{where} must be a number above 0, got {_shown(value)}")
    return float(value)


def _by_number(where: str, said: object) -> dict[int, float]:
    if not isinstance(said, dict) or not 0 < len(said) <= _MOST_ENTRIES:
        raise FormatError(f"{where} must map numbers to bytes/s, got {_shown(said)}")
    found = {}
    for key, value in said.items():
        if isinstance(key, bool) or not isinstance(key, int) or not 0 < key < 1 << 40:
            raise FormatError(f"{where} must map whole numbers to bytes/s, got {_shown(key)}")
        found[key] = _number(f"{where}.{key}", value)
    return found


def _product(where: str, said: object) -> ProductRates:
    fields = _Fields(where, said)
    decode, prompt = (_number(f"{where}.{name}", fields.take(name)) for name in _RATES)
    cached = fields.take("cached_bytes_per_s", None)
    fields.end()
    return ProductRates(decode, prompt, None if cached is None else _number(f"{where}.cached_bytes_per_s", cached))


def _pair(where: str, said: object) -> tuple[float, float]:
    fields = _Fields(where, said)
    first, second = (_number(f"{where}.{name}", fields.take(name)) for name in _RATES)
    fields.end()
    return first, second


def _as_dict(profile: DeviceProfile) -> dict[str, Any]:
    def rounded(value: float) -> float:
        return float(f"{value:.4g}")

    def rates(each: ProductRates | AttentionRates) -> dict[str, float]:
        return {key: rounded(value) for key, value in vars(each).items() if value is not None}

    disk: dict[str, Any] = {"random": {size: rounded(rate) for size, rate in profile.disk_random.items()}}
    if profile.disk_sequential is not None:
        disk["sequential"] = rounded(profile.disk_sequential)
    disk["direct"] = profile.disk_direct
    energy: dict[str, Any] = {"meters": list(profile.energy)}
    energy |= {key: value for key in ("tdp_w", "idle_w") if (value := getattr(profile, key)) is not None}
    return {
        "name": profile.name,
        "kind": profile.kind,
        "processor": profile.processor,
        "cores": profile.cores,
        "features": list(profile.features),
        "kernels": profile.kernels,
        "memory_bytes": profile.memory_bytes,
        "memory_bandwidth": {threads: rounded(rate) for threads, rate in profile.memory_bandwidth.items()},
        "disk": disk,
        "products": {name: rates(each) for name, each in profile.products.items()},
        **({} if profile.attention is None else {"attention": rates(profile.attention)}),
        "launch_s": rounded(profile.launch_s),
        **({"cache_bytes": profile.cache_bytes} if profile.cache_bytes else {}),
        "links": dict(profile.links),
        "energy": energy,
        "sources": list(profile.sources),
    }
