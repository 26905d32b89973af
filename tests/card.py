"""A graphics card that is not there: tensors of this machine that count as CUDA's, and keep CUDA's laws.

Unlike PyTorch's fake tensors these have numbers, so that code which asks for them (is every token real, is any
code out of range) goes its whole way, and its results can be compared with those on the CPU. What is not known of
a card in this way: its kernels, their precision and what they take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
DEVICE, IS_CUDA = Tensor.device.__get__, Tensor.is_cuda.__get__  # type: ignore[attr-defined]
OF_MODULE_TO = (torch._C._nn._parse_to, torch._has_compatible_shallow_copy_type)  # they make no tensor
SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
FROM_ONE_TO_ANOTHER = (Tensor.to, Tensor.cpu, Tensor.cuda)


def put(value: Any) -> Any:
    """Return a copy of tensors, or of dataclasses of them, on the card; a module is put there itself."""
    if isinstance(value, nn.Module):
        for tensor in (*value.parameters(), *value.buffers()):
            _mark(tensor, CARD)
        return value
    if isinstance(value, Tensor):
        return _mark(value.clone(), CARD)
    fields = {name: put(each) if isinstance(each, Tensor) else each for name, each in vars(value).items()}
    return type(value)(**fields)


def device_of(tensor: Tensor) -> torch.device:
    """Return where a tensor counts as being."""
    return getattr(tensor, "pretended", CPU)


class Card(TorchFunctionMode):
    """While it lasts, "cuda" is a device. Raises RuntimeError where tensors meet that CUDA would keep apart."""

    def __enter__(self) -> Card:
        make = nn.Parameter.__new__

        def parameter(kind: type, data: Tensor, *more: Any, **also: Any) -> Tensor:
            return _mark(make(kind, data, *more, **also), device_of(data))

        # The one way to a tensor that PyTorch tells no mode of.
        self._kept = mock.patch.object(nn.Parameter, "__new__", parameter)
        self._kept.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._kept.stop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == DEVICE:
            return device_of(args[0])
        if func == IS_CUDA:
            return device_of(args[0]) == CARD
        if func in OF_MODULE_TO:
            return func(*args, **kwargs)
        if func == SET_DATA:
            _mark(args[0], device_of(args[1]))
            return func(*args)
        leaves = _leaves((args, kwargs))
        asked = [device for leaf in leaves if (device := _named(leaf)) is not None]
        where = asked[0] if asked else _where(func, args, leaves)
        if asked:
            args, kwargs = tree_map(lambda leaf: "cpu" if _named(leaf) else leaf, (args, dict(kwargs)))
        result = func(*args, **kwargs)
        if func in FROM_ONE_TO_ANOTHER and result is args[0] and device_of(result) != where:
            result = result.clone()
        for leaf in _leaves(result):
            if isinstance(leaf, Tensor):
                _mark(leaf, where)
        return result


def _leaves(value: Any) -> list[Any]:
    """Return all that tuples, lists and dicts hold. PyTorch's tree_leaves, which knows more, takes far longer."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return [value]
    return [leaf for each in value for leaf in _leaves(each)]


def _where(func: Callable[..., Any], args: Any, leaves: Sequence[Any]) -> torch.device:
    """Return where the result of a call is that names no device."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if func in FROM_ONE_TO_ANOTHER:
        return CPU if func is Tensor.cpu else CARD if func is Tensor.cuda else device_of(tensors[-1])
    if func is Tensor.numpy and device_of(args[0]) == CARD:
        raise TypeError("a CUDA tensor is no array; copy it to the CPU first")
    if func is Tensor.copy_:
        return device_of(args[0])
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        return _indexed(*args)
    return _common(func, tensors)


def _indexed(x: Tensor, index: Any, value: Any = None) -> torch.device:
    """Return where x is. An index may lie on the CPU; what is set by one may not, unless by slices alone."""
    places = [leaf for leaf in _leaves(index) if isinstance(leaf, Tensor) and leaf.ndim]
    for place in places:
        if device_of(place) not in (CPU, device_of(x)):
            raise RuntimeError("an index on the card does not fit a tensor on the CPU")
    if places and isinstance(value, Tensor):
        _common(Tensor.__setitem__, [x, value])
    return device_of(x)


def _common(func: Callable[..., Any], tensors: Sequence[Tensor]) -> torch.device:
    """Return the one device of tensors; single numbers on the CPU go with any."""
    devices = {device_of(tensor) for tensor in tensors if tensor.ndim or device_of(tensor) == CARD}
    if len(devices) > 1:
        met = ", ".join(f"{device_of(each).type} {list(each.shape)}" for each in tensors)
        raise RuntimeError(f"{getattr(func, '__name__', func)} of tensors on two devices: {met}")
    return devices.pop() if devices else CPU


def _named(leaf: Any) -> torch.device | None:
    """Return the device that an argument names."""
    if isinstance(leaf, torch.device) or (isinstance(leaf, str) and leaf in ("cpu", "cuda")):
        return CPU if torch.device(leaf).type == "cpu" else CARD
    return None


def _mark(tensor: Tensor, device: torch.device) -> Tensor:
    tensor.pretended = device  # type: ignore[attr-defined]
    return tensor
