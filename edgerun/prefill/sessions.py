"""The sessions of a built model on one device, opened when they are first needed."""

from __future__ import annotations

import contextlib
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.errors import DeviceError, ReadError, UnsupportedError
from edgerun.events import EventSink, Progress, ignore
from edgerun.kernels.interface import F32
from edgerun.models import ModelSpec
from edgerun.new_files import temporary_folder
from edgerun.prefill.build import BuiltModel
from edgerun.prefill.layer_files import GraphFile
from edgerun.prefill.providers import (
    Device,
    check_machine,
    compile_graph,
    compile_ladder,
    open_session,
    session_options,
)

ExpertJob = tuple[GraphFile, Callable[[], F32], Callable[[F32], None]]  # its graph, what gives rows, what takes results


class Sessions:
    """keep_layers: so many layers' sessions stay open, the least recently used go; 0: all."""

    def __init__(
        self,
        built: BuiltModel,
        device: Device,
        *,
        threads: int,
        keep_layers: int = 0,
    ) -> None:
        self._built = built
        self.device = device
        self._threads = threads
        self._keep = keep_layers
        self._open: OrderedDict[int, dict[GraphFile, Any]] = OrderedDict()
        self._workers: ThreadPoolExecutor | None = None

    def run_experts(self, jobs: Sequence[ExpertJob]) -> None:
        """They are small and many: on a CPU each runs on one thread, several at once."""
        for graph, _, _ in jobs:
            self.get(graph)

        def one(job: ExpertJob) -> None:
            graph, rows, take = job
            take(self.run(graph, {"x": rows()})["t"])

        if self.device.kind.name != "ort" or self._threads == 1:
            for job in jobs:
                one(job)
            return
        if self._workers is None:
            self._workers = ThreadPoolExecutor(self._threads, thread_name_prefix="edgerun-prompt-expert")
        futures = [self._workers.submit(one, job) for job in jobs]
        try:
            for future in futures:
                future.result()
        finally:  # after an error no other is begun, and those that run are waited for
            for future in futures:
                future.cancel()
            wait(futures)

    def run(self, graph: GraphFile, feeds: Mapping[str, F32]) -> dict[str, F32]:
        """Results by name. DeviceError when the provider fails while it runs, and what `check_machine` raises."""
        session = self.get(graph)
        try:
            results = session.run(list(graph.segment.outputs), dict(feeds))
        except Exception as error:  # noqa: BLE001 - providers raise what they like
            check_machine(error, self.device)
            raise DeviceError(f"{self.device.name} failed in {graph.name}: {str(error)[:400]}") from None
        return {name: np.asarray(value) for name, value in zip(graph.segment.outputs, results, strict=True)}

    def get(self, graph: GraphFile) -> Any:
        """The open session. UnsupportedError when the device does not take the graph."""
        mine = self._open.get(graph.layer)
        if mine is None:
            mine = self._open[graph.layer] = {}
            while self._keep and len(self._open) > self._keep:
                self._open.popitem(last=False)
        self._open.move_to_end(graph.layer)
        if graph not in mine:
            mine[graph] = self._session(graph)
        return mine[graph]

    def open_all(self, spec: ModelSpec, events: EventSink = ignore) -> None:
        """All of them now, so that a refusal comes before any prompt; where few are kept, the last ones stay. Of a
        layer's experts only the first: their graphs are alike."""
        graphs = self._built.graphs(spec)
        for done, graph in enumerate(graphs):
            events(Progress("open prompt graphs", done, len(graphs), "graphs"))
            self.get(graph)
        events(Progress("open prompt graphs", len(graphs), len(graphs), "graphs"))

    def close(self) -> None:
        """Give back what providers hold."""
        if self._workers is not None:
            self._workers.shutdown()
            self._workers = None
        self._open.clear()

    def _session(self, graph: GraphFile) -> Any:
        path = self._path(graph)
        if not self.device.kind.context or self.device.handle is None:
            return self._opened(path, 1 if graph.expert is not None else self._threads)
        compiled = self._compiled(graph)
        try:
            return self._opened(compiled)
        except UnsupportedError:  # of another version of the provider, or damaged: once more from the graph
            if self.device.kind.sharing:
                shutil.rmtree(compiled.parent)
            else:
                compiled.unlink(missing_ok=True)
            return self._opened(self._compiled(graph))

    def _path(self, graph: GraphFile) -> Path:
        path = self._built.folder / graph.name
        if not path.is_file():
            raise ReadError(f"{path} is gone; delete the folder, and it is made again")
        return path

    def _opened(self, path: Path, threads: int = 0) -> Any:
        options = session_options(
            self.device,
            threads or self._threads,
            exact=self._built.scheme.weights == "i8",
            share=bool(self.device.kind.sharing),
        )
        return open_session(self.device, path, options)

    def _compiled(self, graph: GraphFile) -> Path:
        """The provider's own form of a graph, kept beside it; where graphs of a ladder can share their weights, made
        for all of them at once."""
        folder = self._built.folder / f"{self.device.name}-{self.device.version or 'any'}"
        folder.mkdir(exist_ok=True, mode=0o700)
        if not self.device.kind.sharing:
            out = folder / graph.name
            if not out.is_file():
                with temporary_folder(folder) as own:
                    compile_graph(self.device, self._path(graph), own / graph.name)
                    (own / graph.name).chmod(0o600)  # whatever the umask: see `trust`
                    (own / graph.name).replace(out)
            return out
        together = folder / graph.ladder_name
        if not together.is_dir():
            ladder = [self._path(replace(graph, tokens=tokens)) for tokens in self._built.sizes]
            with temporary_folder(folder) as own:
                made = own / "made"
                made.mkdir()
                compile_ladder(self.device, ladder, made)
                for path in made.iterdir():
                    path.chmod(0o600)
                with contextlib.suppress(OSError):  # another process was faster
                    made.rename(together)
        return together / graph.name
