"""The keys of a study file in words, as `depthjepa recipes --keys study` and docs/keys.md print them."""

from __future__ import annotations

from pydantic import TypeAdapter

from depthjepa.config.keys import Listing, Section, first_paragraph, keys_of
from depthjepa.study.claims import Comparison
from depthjepa.study.plan import Study


def study_listing() -> Listing:
    """The keys of a study, then those of an entry of its `claims`."""
    study, claim = (TypeAdapter(kind).json_schema() for kind in (Study, Comparison))
    sections = (
        Section("study", first_paragraph(study), keys_of(study["properties"])),
        Section("study", first_paragraph(claim), keys_of(claim["properties"], "claims."), needs="claims"),
    )
    return Listing("Keys of a study file: `depthjepa study`", sections)
