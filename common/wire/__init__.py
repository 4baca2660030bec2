"""Bytes: one module per header, each with its layout, a parser, an emitter and its limits.

Functions that take bytes from the network end in ``_untrusted`` and raise `WireError` only. Nothing here
keeps state, reads a clock or knows what a flow is.
"""
