"""Layers, overlays and the files a disk is made of."""
