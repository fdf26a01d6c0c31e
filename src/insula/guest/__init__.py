"""Talking to the inside of a machine: the wire, the keeper, the agent, programs, files.

Plain blocking code over one unix socket. What `insula exec` needs is kept light on purpose: it imports nothing heavier
than ``socket``.
"""
