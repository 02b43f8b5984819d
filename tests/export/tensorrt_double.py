"""Stands in for the bindings of TensorRT: it has exactly their names, and remembers what it was asked for.

The names and numbers are those of real bindings, see tests/export/tensorrt_names.py. Any other attribute
read or set is an error, so code that passes here calls nothing that a version lacks.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.export.tensorrt_signatures import NAMES, require_call

BINDINGS: tuple[str, ...] = tuple(NAMES["classes"]["Builder"]["in"])
"""Those that build."""
PLAN = bytes(range(256)) * 8
CACHE = b"timing cache of this machine"
PHASES = (("Building", None, 2), ("Tactics", "Building", 4))


def members(name: str, binding: str) -> frozenset[str]:
    """The public names of a class in one of `BINDINGS`."""
    known = NAMES["classes"][name]
    assert binding in known["in"]
    some = (member for member, bindings in known["sometimes"].items() if binding in bindings)
    return frozenset((*known["always"], *some))


class _Checked:
    """An object whose public attributes, and what they may be called with, are those of a real class."""

    _names: frozenset[str] = frozenset()
    _binding = ""

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401
        if not name.startswith("_") and name not in type(self)._names:
            raise AttributeError(f"the real {type(self).__name__} has no {name}")
        found = super().__getattribute__(name)
        by_us = name.startswith("_") or type(self).__name__ not in NAMES["signatures"]
        return found if by_us or not callable(found) else _checked(type(self), name, found)

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in type(self)._names:
            raise AttributeError(f"the real {type(self).__name__} has no {name}")
        super().__setattr__(name, value)


def _checked(kind: type[_Checked], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def checked(*arguments: object) -> Any:  # noqa: ANN401
        require_call(kind.__name__, name, kind._binding, arguments)
        return call(*arguments)

    return checked


class Asked:
    """What a double was asked for, and how it is to behave."""

    def __init__(self) -> None:
        self.flags: list[int] = []
        self.configs: list[Any] = []
        self.profiles: list[dict[str, Any]] = []
        self.built = 0
        self.fails_with: str | None = None
        self.refuses_cache = False


def tensorrt_double(binding: str, stage: Any) -> tuple[Any, Asked]:  # noqa: ANN401
    """A module with the names of `binding`, whose parser reads every graph as that of `stage`."""
    asked = Asked()
    version, which = binding.split()[1], binding

    class Checked(_Checked):
        _binding = which

    class ILogger(Checked):
        _names = members("ILogger", binding)
        Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    class IProgressMonitor(Checked):
        _names = members("IProgressMonitor", binding)

    class IHostMemory(bytes):
        pass

    class ITimingCache(Checked):
        _names = members("ITimingCache", binding)

        def serialize(self) -> IHostMemory:
            return IHostMemory(CACHE)

    class IBuilderConfig(Checked):
        _names = members("IBuilderConfig", binding)

        def __init__(self) -> None:
            self._pools: dict[Any, int] = {}
            self._targets: dict[int, Any] = {}
            self._given: bytes | None = None
            self._profiles = 0
            self._flags = {module.BuilderFlag.TF32}

        def set_flag(self, flag: Any) -> None:  # noqa: ANN401
            self._flags.add(flag)

        def clear_flag(self, flag: Any) -> None:  # noqa: ANN401
            self._flags.discard(flag)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:  # noqa: ANN401
            self._pools[pool] = size

        def create_timing_cache(self, content: bytes) -> ITimingCache:
            self._given = content
            return ITimingCache()

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            assert isinstance(cache, ITimingCache) and ignore_mismatch is False
            return not asked.refuses_cache

        def get_timing_cache(self) -> ITimingCache:
            return ITimingCache()

        def set_compute_capability(self, target: Any, index: int) -> bool:  # noqa: ANN401
            assert 0 <= index < self.num_compute_capabilities
            self._targets[index] = target
            return True

        def add_optimization_profile(self, profile: Any) -> int:  # noqa: ANN401
            asked.profiles.append(profile._shapes)
            self._profiles += 1
            return self._profiles - 1

    class IOptimizationProfile(Checked):
        _names = members("IOptimizationProfile", binding)

        def __init__(self) -> None:
            self._shapes: dict[str, Any] = {}

        def set_shape(self, name: str, least: Any, tuned: Any, most: Any) -> None:  # noqa: ANN401
            self._shapes[name] = (least, tuned, most)

    class INetworkDefinition(Checked):
        _names = members("INetworkDefinition", binding)

        num_inputs = property(lambda self: len(stage.inputs))
        num_outputs = property(lambda self: len(stage.outputs))

        def get_input(self, index: int) -> Any:  # noqa: ANN401
            return _tensor(stage.inputs[index])

        def get_output(self, index: int) -> Any:  # noqa: ANN401
            return _tensor(stage.outputs[index])

    class ITensor(Checked):
        _names = members("ITensor", binding)

    def _tensor(spec: Any) -> ITensor:  # noqa: ANN401
        tensor = ITensor()
        tensor.name, tensor.shape = spec.name, tuple(-1 if isinstance(a, str) else a for a in spec.shape)
        types = {"uint8": "UINT8", "int64": "INT64", "float16": "HALF", "float32": "FLOAT"}
        tensor.dtype = module.DataType[types[spec.dtype]]
        return tensor

    class OnnxParser(Checked):
        _names = members("OnnxParser", binding)

        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            assert isinstance(network, INetworkDefinition) and isinstance(logger, ILogger)

        def parse_from_file(self, path: str) -> bool:
            assert isinstance(path, str) and Path(path).exists()
            return True

    class Builder(Checked):
        _names = members("Builder", binding)

        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        def create_network(self, flags: int) -> INetworkDefinition:
            asked.flags.append(flags)
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            asked.configs.append(IBuilderConfig())
            return asked.configs[-1]

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> IHostMemory | None:  # noqa: ANN401
            monitor = config.progress_monitor
            for name, parent, steps in PHASES:
                monitor.phase_start(name, parent, steps)
            for name, _parent, steps in reversed(PHASES):
                for step in range(steps):
                    if not monitor.step_complete(name, step):
                        return None
                monitor.phase_finish(name)
            if asked.fails_with is not None:
                self._logger.log(ILogger.Severity.ERROR, asked.fails_with)
                return None
            asked.built += 1
            return IHostMemory(PLAN)

    doubles = (ILogger, IProgressMonitor, OnnxParser, Builder)
    enums = {
        name: _Numbered(name, by_binding[binding])  # type: ignore[call-arg]
        for name, by_binding in NAMES["enums"].items()
        if binding in by_binding
    }
    module = ModuleType("tensorrt")
    vars(module).update({each.__name__: each for each in doubles}, __version__=version, **enums)
    return module, asked


class _Numbered(enum.Enum):
    """Enumerators of pybind11 are no integers, and can be made into one."""

    def __int__(self) -> int:
        return int(self.value)
