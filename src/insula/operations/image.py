"""The verbs of images."""

from __future__ import annotations

from insula.model.requests import BuildImage, DeleteImage, ListImages, ShowImage
from insula.operations.context import Context
from insula.operations.operation import Operation

