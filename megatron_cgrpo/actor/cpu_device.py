"""Lets megatron-core run without CUDA, and touches nothing else.

Megatron-core names CUDA in many places where any device would do: ``torch.cuda.current_device()``,
``torch.zeros(device="cuda")``, ``tensor.cuda()``, comparisons with ``"torch.cuda.FloatTensor"``. An import hook hands
each ``megatron.core`` module a view of ``torch`` in which those names mean the CPU. Every other module keeps the real
``torch``. Two methods live on ``torch.Tensor`` itself (``cuda`` and ``type``) and decide by their caller's module.

``install`` refuses to run where CUDA is available: there the real thing is used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

_SCOPE = "megatron.core"
_CPU = torch.device("cpu")
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "zeros_like", "ones_like", "empty_like")


class _View(ModuleType):
    """A module with some attributes replaced; all others come from the real one."""

    def __init__(self, real: ModuleType, **replaced: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(replaced, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


class _Event:
    """CPU work is done when the call returns, so there is nothing to record or wait for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, *args: Any) -> None:
        pass

    def wait(self, *args: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Stream:
    """The CPU's only stream."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def record_event(self, *args: Any) -> _Event:
        return _Event()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *args: Any) -> None:
        pass


_STREAM = _Stream()


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _current_stream(*args: Any, **kwargs: Any) -> _Stream:
    return _STREAM


def _get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.set_rng_state(state)


def _to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Megatron's moves only what is on a GPU, and leaves a tensor where the all-to-all wants numbers."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = _CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return make


def _torch_view() -> _View:
    cuda = _View(
        torch.cuda,
        current_device=lambda: _CPU,
        synchronize=_nothing,
        set_device=_nothing,
        empty_cache=_nothing,
        Stream=_Stream,
        Event=_Event,
        current_stream=_current_stream,
        default_stream=_current_stream,
        stream=lambda stream: _STREAM,
        get_rng_state=_get_rng_state,
        set_rng_state=_set_rng_state,
        manual_seed=torch.manual_seed,
        nvtx=_View(torch.cuda.nvtx, range_push=_nothing, range_pop=_nothing),
    )
    return _View(torch, cuda=cuda, **{name: _on_cpu(getattr(torch, name)) for name in _FACTORIES})


_TORCH = _torch_view()


def _adapt(module: ModuleType) -> None:
    """Gives a freshly imported megatron.core module its view of torch, and a few of them what they lack without TE."""
    names = module.__dict__
    if names.get("torch") is torch:
        names["torch"] = _TORCH
    if module.__name__ == "megatron.core.jit":
        # What torch.compile would trace are fused kernels, which a CPU does without: importing it takes seconds, and a
        # view of torch would break the trace.
        names["disable_jit_fuser"]()
    if module.__name__ == "megatron.core.tensor_parallel.random":
        names["_get_cuda_rng_state"] = _get_rng_state
        names["_set_cuda_rng_state"] = _set_rng_state
        # Activation recompute asks Transformer Engine for its FP8 state even where FP8 is off.
        names.setdefault("FP8GlobalStateManager", SimpleNamespace(is_fp8_enabled=lambda: False))
        for name in ("activation_recompute_forward", "fp8_autocast"):
            names.setdefault(name, lambda *args, **kwargs: contextlib.nullcontext())
    if module.__name__ == "megatron.core.transformer.moe.moe_utils":
        names.setdefault("te_general_gemm", None)  # the router asks whether it is None, and takes torch's product then
        names["maybe_move_tensor_to_cpu"] = _to_host


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _adapt(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not (fullname + ".").startswith(_SCOPE + "."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def _called_from_megatron() -> bool:
    return (sys._getframe(2).f_globals.get("__name__", "") + ".").startswith(_SCOPE + ".")


def _adapt_tensor_methods() -> None:
    real_cuda, real_type = torch.Tensor.cuda, torch.Tensor.type

    @functools.wraps(real_cuda)
    def cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self if _called_from_megatron() else real_cuda(self, *args, **kwargs)

    @functools.wraps(real_type)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs and _called_from_megatron():
            return real_type(self).replace("torch.", "torch.cuda.")
        return real_type(self, *args, **kwargs)

    torch.Tensor.cuda, torch.Tensor.type = cuda, type_  # type: ignore[method-assign, assignment]


def install() -> None:
    """Idempotent. Raises ``RuntimeError`` on a machine with CUDA, or when megatron.core was imported before."""
    if torch.cuda.is_available():
        raise RuntimeError("this machine has CUDA: megatron-core runs on it directly, without the CPU device layer")
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if _SCOPE in sys.modules:
        raise RuntimeError("megatron.core was imported before the CPU device layer; import megatron_cgrpo.actor first")
    sys.meta_path.insert(0, _Finder())
    _adapt_tensor_methods()
