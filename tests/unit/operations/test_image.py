"""Deleting images whose records cannot be read: the very ones that are to be deleted and built again."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.errors import NotFound
from insula.model.requests import DeleteImage
from insula.operations.context import Context
from insula.operations.image import delete
from insula.operations.operation import Operation
from insula.store import names
from insula.store.names import Home
from tests.unit.images.store import put_image


@pytest.mark.parametrize("harm", ["damaged", "missing"])
@pytest.mark.parametrize("by", ["name", "digest"])
def test_an_image_with_a_broken_record_can_be_deleted(tmp_path: Path, harm: str, by: str) -> None:
    context = Context(Home(tmp_path / "home"))
    image = put_image(context.home, "one", called=("web",))
    record = image.folder / names.IMAGE_RECORD
    record.chmod(0o600)
    record.write_text("{") if harm == "damaged" else record.unlink()
    name = "web" if by == "name" else image.digest[:12]
    planned = delete(context, DeleteImage(image=name, dry_run=True), Operation("image delete"))
    assert image.folder.exists()
    assert planned.problem
    assert delete(context, DeleteImage(image=name), Operation("image delete")).digest == image.digest
    assert not image.folder.exists()
    with pytest.raises(NotFound):
        delete(context, DeleteImage(image=name), Operation("image delete"))
