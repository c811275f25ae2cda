"""Where models come from: a bundled name, folder, hub id or pipeline becomes a Model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from efface.model.config import sentences
from efface.model.devices import device_of, dtype_of
from efface.model.model import Model
from efface.model.network import Network
from efface.model.reach import running_on
from efface.model.recognise import family_of_index, family_of_pipeline
from efface.model.sources import Folder, Pipeline, locate

__all__ = ["load"]


def load(
    target: Any, device: str | None = None, dtype: str | torch.dtype | None = None, offline: bool = False
) -> Model:
    """A bundled name, diffusers folder, hub id, diffusers pipeline or Model -> Model.

    device: default cuda where there is one, else cpu. dtype: default float32 on cpu, float16 elsewhere; a
    pipeline keeps its own. Raises WrongFile, UnknownName, BadRequest (a device that is not here), Unavailable.
    """
    if isinstance(target, Model):
        return target
    if not isinstance(target, str | Path):
        family = family_of_pipeline(target)
        source: Folder | Pipeline = Pipeline(target, family)
        denoiser = source.part(family.parts[0].name, torch.device("cpu"), torch.float32)
        place, kind = running_on(denoiser), denoiser.dtype
        card = family.card(source.name, source.configs(), source.facts)
        return Model(Network(card, family, source, torch.device(place), kind))
    place = device_of(device)
    path, name = locate(str(target), offline)
    source = Folder(path)
    family = family_of_index(source.index, name)
    source.allow(family.parts)
    configs, facts = source.configs(), source.facts
    with sentences(path):  # a network is built without weights, to see its sites
        card = family.card(name, configs, facts)
    return Model(Network(card, family, source, torch.device(place), dtype_of(dtype, place)))
