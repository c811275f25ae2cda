"""Reach: the tensor that a running network really multiplies with, found by its name or refused in a sentence.

People compile, wrap, fuse, offload, quantise and adapt their networks. A name alone says little then: the weight may
be a copy that nobody calls, a placeholder without values, or packed numbers that cannot be added to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from efface.errors import BadRequest

__all__ = ["copies", "is_called", "refuse_adapters", "running_on", "unwrapped", "values"]

_WRAPPERS = ("_orig_mod", "module")  # what torch.compile and the data-parallel wrappers call the network inside
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_FUSED = {  # a layer that multiplies for several others, their rows one below the other
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


def unwrapped(part: object) -> object:
    """The part inside what torch.compile or a data-parallel wrapper put around it."""
    while isinstance(part, torch.nn.Module):
        inside = [part._modules.get(name) for name in _WRAPPERS if len(part._modules) == 1]
        found = next((m for m in inside if m is not None), None)
        if found is None:
            return part
        part = found
    return part


def running_on(network: torch.nn.Module) -> torch.device:
    """Where a network works: an offloaded one waits elsewhere."""
    hook = getattr(network, "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        if (place := getattr(one, "execution_device", None)) is not None:
            return torch.device(place)
    return next(network.parameters()).device


def refuse_adapters(part: torch.nn.Module, name: str) -> None:
    """Raise BadRequest where an adapter sits on a layer, as peft's do before they are fused."""
    for where, module in part.named_modules():
        if hasattr(module, "base_layer"):
            raise BadRequest(f"an adapter is loaded on {name} at {where}; {_UNLOAD}")


_UNLOAD = "fuse_lora() and then unload_lora_weights() make it part of the weights, or unload it"


def values(network: torch.nn.Module, key: str) -> torch.Tensor:
    """The tensor at a key of the state dict that can be read and written in place. Raises BadRequest."""
    owner, _, leaf = key.rpartition(".")
    try:
        module = network.get_submodule(owner)
    except AttributeError:
        raise BadRequest(f"the network has no layer {owner}; load the base that the patch names") from None
    if hasattr(module, "base_layer"):
        raise BadRequest(f"an adapter is loaded on {owner}; {_UNLOAD}")
    held = module._parameters.get(leaf)
    if held is None:
        raise BadRequest(
            f"the layer {owner} is a {type(module).__name__} without a plain {leaf}; "
            "load the model without quantisation and without replaced layers"
        )
    if held.is_meta:
        return _offloaded(module, leaf, owner)
    packed = type(held.data) is not torch.Tensor or hasattr(held, "quant_state")
    if packed or held.dtype not in _PLAIN:
        raise BadRequest(
            f"the weight of {owner} is {_described(held)}, which cannot be edited; "
            "load the model in float32, float16 or bfloat16 without quantisation"
        )
    return held


def _described(held: torch.Tensor) -> str:
    """Of what kind a weight is, in a few words."""
    kind = type(held.data).__name__ if type(held.data) is not torch.Tensor else type(held).__name__
    return str(held.dtype).removeprefix("torch.") + ("" if kind in ("Tensor", "Parameter") else f" in a {kind}")


def _offloaded(module: torch.nn.Module, leaf: str, owner: str) -> torch.Tensor:
    """The values that a hook of accelerate holds for a placeholder. Raises BadRequest where none can be changed."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        held = getattr(one, "weights_map", None)
        if held is None:
            continue
        tensor = held[leaf]
        if isinstance(tensor, torch.Tensor) and tensor is held[leaf] and not tensor.is_meta:
            return tensor
        raise BadRequest(f"the weight of {owner} is offloaded to disk, where it cannot be edited; offload to the CPU")
    raise BadRequest(f"the weight of {owner} is on the meta device, without values; load the weights first")


def copies(network: torch.nn.Module, key: str) -> Iterator[torch.Tensor]:
    """Rows of fused layers that multiply in place of the layer at a key, as views that can be written."""
    owner, _, leaf = key.rpartition(".")
    parent, _, name = owner.rpartition(".")
    around = network.get_submodule(parent)
    for fused, members in _FUSED.items():
        if name not in members or not getattr(around, "fused_projections", False) or not hasattr(around, fused):
            continue
        yield _rows(network, parent, fused, members, name, leaf)


def _rows(
    network: torch.nn.Module, parent: str, fused: str, members: Sequence[str], name: str, leaf: str
) -> torch.Tensor:
    sizes = [len(values(network, f"{parent}.{member}.{leaf}")) for member in members]
    start = sum(sizes[: members.index(name)])
    return values(network, f"{parent}.{fused}.{leaf}")[start : start + sizes[members.index(name)]]


def is_called(network: torch.nn.Module, name: str) -> bool:
    """False for a layer whose work a fused one does."""
    parent, _, own = name.rpartition(".")
    around = network.get_submodule(parent)
    fused = getattr(around, "fused_projections", False)
    return not (fused and any(own in members and hasattr(around, f) for f, members in _FUSED.items()))
