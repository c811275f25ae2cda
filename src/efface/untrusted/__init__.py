"""Rules for what comes from strangers: names, links, documents, tables, printed lines."""

from efface.untrusted.rules import (
    cell,
    contained,
    escaped,
    owned,
    plain_name,
    printable,
    refuse_code,
    refuse_links,
    short,
)

__all__ = ["cell", "contained", "escaped", "owned", "plain_name", "printable", "refuse_code", "refuse_links", "short"]
