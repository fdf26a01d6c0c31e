"""Which kernel modules an initramfs needs, in the order in which they must be loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from insula.errors import InsulaError


def module_name(path: str) -> str:
    """``kernel/drivers/block/virtio-blk.ko.xz`` as the kernel calls it: ``virtio_blk``."""
    return path.rsplit("/", 1)[-1].partition(".ko")[0].replace("-", "_")


def dependencies(module: bytes) -> list[str]:
    """The modules that a decompressed ``.ko`` names in its ``.modinfo`` section (NUL-separated ``key=value`` strings)."""
    _, found, tail = module.partition(b"\0depends=")
    names = tail.partition(b"\0")[0].decode("ascii", "replace") if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]


def load_order(wanted: Iterable[str], modules: Mapping[str, bytes], builtin: frozenset[str]) -> list[str]:
    """``wanted`` and all they need, each after what it needs; what is built into the kernel is left out.

    ``modules`` maps names to decompressed modules. Raises InsulaError (``module_missing``) for one that is nowhere.
    """
    order: list[str] = []

    def visit(name: str) -> None:
        if name in builtin or name in order:
            return
        if name not in modules:
            raise InsulaError(f"the kernel has no module '{name}'", code="module_missing", hint="choose another kernel package")
        for needed in dependencies(modules[name]):
            visit(needed)
        order.append(name)

    for name in wanted:
        visit(name.replace("-", "_"))
    return order


def read_builtin(text: str) -> frozenset[str]:
    """The names in a kernel's ``modules.builtin``."""
    return frozenset(module_name(line) for line in text.split())


def decompress(path: str, content: bytes) -> bytes:
    """A module as the kernel wants it. Raises InsulaError (``module_missing``) for a compression Python cannot undo."""
    if path.endswith(".ko"):
        return content
    if path.endswith(".xz"):
        import lzma

        return lzma.decompress(content)
    if path.endswith(".gz"):
        import gzip

        return gzip.decompress(content)
    raise InsulaError(f"cannot decompress {path}", code="module_missing", hint="choose another kernel package")
