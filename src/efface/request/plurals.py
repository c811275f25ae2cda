"""English plurals: a caption with "three knives" names a knife."""

from __future__ import annotations

__all__ = ["forms_of"]

IRREGULAR = {
    "calf": "calves", "child": "children", "elf": "elves", "foot": "feet", "goose": "geese", "half": "halves",
    "knife": "knives", "leaf": "leaves", "life": "lives", "loaf": "loaves", "man": "men", "mouse": "mice",
    "ox": "oxen", "person": "people", "scarf": "scarves", "shelf": "shelves", "thief": "thieves", "tooth": "teeth",
    "wife": "wives", "wolf": "wolves", "woman": "women",
}  # fmt: skip
SINGULAR = {many: one for one, many in IRREGULAR.items()}
VOWELS = "aeiou"
HISSING = ("s", "x", "z", "ch", "sh")


def forms_of(text: str) -> frozenset[str]:
    """A name with its singular and plural forms, in lower case: only its last word changes."""
    folded = text.casefold().strip()
    head, blank, last = folded.rpartition(" ")
    return frozenset(head + blank + form for form in (last, *_plurals(last), *_singulars(last)) if form)


def _plurals(word: str) -> list[str]:
    for one, many in IRREGULAR.items():
        if word.endswith(one) and (word == one or one in ("man", "woman", "mouse", "foot", "tooth", "wolf", "knife")):
            return [word[: -len(one)] + many, word + "s"]
    if word.endswith(HISSING):
        return [word + "es"] if not word.endswith("z") else [word + "es", word + "zes"]
    if word.endswith("y") and word[-2:-1] not in VOWELS:
        return [word[:-1] + "ies"]
    return [word + "s", word + "es"] if word.endswith("o") else [word + "s"]


def _singulars(word: str) -> list[str]:
    """Of a name that is a plural itself; a word that ends in ss, us or is has none."""
    if word in SINGULAR:
        return [SINGULAR[word]]
    if not word.endswith("s") or word.endswith(("ss", "us", "is")) or len(word) < 4:
        return []
    if word.endswith("ies"):
        return [word[:-3] + "y", word[:-1]]
    found = [word[:-1]]
    return [*found, word[:-2]] if word[:-2].endswith((*HISSING, "o")) and word.endswith("es") else found
