"""A device that computes on the CPU but is not the CPU: what waits for it can be counted without one.

Its tensors say that they are on the device "meta", which autograd and the operators of PyTorch treat like any other.
`torch.tensor(..., device=...)`, which waits too, makes no such tensor, so that whatever is computed with it fails.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only

DEVICE = torch.device("meta")
aten = torch.ops.aten
# What reads values, or needs them to know the shape of its result.
READERS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.repeat_interleave.Tensor,
}


class DeviceTensor(torch.Tensor):
    """A tensor of the device; `values` are on the CPU."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=DEVICE
        )

    def __init__(self, values):
        self.values_on_cpu = values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of the device")

    __torch_function__ = torch._C._disabled_torch_function_impl


class SimulatedDevice(TorchDispatchMode):
    """While it is entered, tensors can be moved to `DEVICE`; `waits` names each operation that has waited for it."""

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        found = []
        tree_map_only(DeviceTensor, found.append, (args, kwargs))
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = "cpu"
        self._note_waits(function, args, kwargs, bool(found), target)
        to_device = target == DEVICE if target is not None else bool(found)

        originals: dict[int, DeviceTensor] = {}

        def unwrap(value):
            originals[id(value.values_on_cpu)] = value
            return value.values_on_cpu

        result = function(*tree_map_only(DeviceTensor, unwrap, args), **tree_map_only(DeviceTensor, unwrap, kwargs))

        def wrap(value):
            if id(value) in originals:  # in place
                return originals[id(value)]
            return DeviceTensor(value) if isinstance(value, torch.Tensor) and to_device else value

        return tree_map(wrap, result)

    def _note_waits(self, function, args, kwargs, on_device: bool, target):
        is_copy = function in (aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default)
        moves_in = is_copy and target == DEVICE and not on_device
        moves_out = is_copy and on_device and target is not None and target != DEVICE
        if function is aten.copy_.default:
            moves_in = isinstance(args[0], DeviceTensor) and not isinstance(args[1], DeviceTensor)
            moves_out = isinstance(args[1], DeviceTensor) and not isinstance(args[0], DeviceTensor)
        non_blocking = kwargs.get("non_blocking") or (function is aten.copy_.default and len(args) > 2 and args[2])
        if (moves_in or moves_out) and not non_blocking:
            self.waits.append(f"{function} {'to' if moves_in else 'from'} the device")
        if on_device and function in READERS:
            self.waits.append(str(function))
        if function in (aten.index.Tensor, aten.index_put_.default) and on_device:
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            self.waits += [f"{function} with a mask"] * len(masks)


def move(module: torch.nn.Module):
    """Moves a module to the device, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = DeviceTensor(parameter.detach())
                part._parameters[name] = torch.nn.Parameter(moved, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = DeviceTensor(buffer)
