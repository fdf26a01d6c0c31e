"""The version of Insula, written once: the package metadata and ``insula --version`` both read it here."""

__version__ = "0.1.0"
