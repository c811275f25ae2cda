"""Reach: what runs is what is edited, else one sentence says why not."""

from __future__ import annotations

import pytest
import torch

from efface.errors import BadRequest
from efface.model.reach import copies, is_called, refuse_adapters, unwrapped, values


class Attention(torch.nn.Module):
    """Keys and values in one layer, as diffusers fuses them."""

    def __init__(self) -> None:
        super().__init__()
        self.to_k, self.to_v = torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(3, 4, bias=False)
        self.to_q = torch.nn.Linear(3, 2, bias=False)
        self.to_kv = torch.nn.Linear(3, 6, bias=False)
        self.fused_projections = True
        with torch.no_grad():
            self.to_kv.weight.copy_(torch.cat([self.to_k.weight, self.to_v.weight]))


def test_a_fused_projection_is_edited() -> None:
    net = torch.nn.ModuleDict({"attn": Attention()})
    (view,) = copies(net, "attn.to_v.weight")
    assert view.equal(values(net, "attn.to_v.weight"))
    with torch.no_grad():
        view.zero_()
    assert not values(net, "attn.to_kv.weight")[2:].any()
    assert values(net, "attn.to_kv.weight")[:2].any()
    assert not is_called(net, "attn.to_v")
    assert is_called(net, "attn.to_q")


@pytest.mark.parametrize("wrapper", [torch.nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_wrapped_network_is_looked_through(wrapper: type) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    assert unwrapped(wrapper(net)) is net


def test_an_adapter_is_refused_by_its_layer() -> None:
    net = torch.nn.ModuleDict({"to_k": torch.nn.Module(), "to_q": torch.nn.Linear(2, 2)})
    net["to_k"].base_layer = torch.nn.Linear(2, 2)
    with pytest.raises(BadRequest, match=r"adapter is loaded on to_k; fuse_lora"):
        values(net, "to_k.weight")
    with pytest.raises(BadRequest, match="adapter is loaded on text at to_k"):
        refuse_adapters(net, "text")
    assert values(net, "to_q.weight") is net["to_q"].weight


def test_weights_without_values_or_of_few_bits_are_refused() -> None:
    meta = torch.nn.ModuleDict({"x": torch.nn.Linear(2, 2, device="meta")})
    with pytest.raises(BadRequest, match="meta device"):
        values(meta, "x.weight")
    small = torch.nn.ModuleDict({"x": torch.nn.Linear(2, 2).to(torch.float8_e4m3fn)})
    with pytest.raises(BadRequest, match="float8_e4m3fn, which cannot be edited"):
        values(small, "x.weight")
    packed = torch.nn.ModuleDict({"x": torch.nn.Linear(2, 2)})
    packed["x"].weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(BadRequest, match="uint8"):
        values(packed, "x.weight")


def test_an_offloaded_weight_is_edited_where_it_waits() -> None:
    accelerate = pytest.importorskip("accelerate")
    net = torch.nn.ModuleDict({"x": torch.nn.Linear(2, 2)})
    accelerate.cpu_offload(net, torch.device("cpu"))
    with torch.no_grad():
        values(net, "x.weight").zero_()
        values(net, "x.bias").fill_(3.0)
    assert net["x"](torch.ones(1, 2)).tolist() == [[3.0, 3.0]]
