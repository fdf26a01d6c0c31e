"""The QEMU engine: board.py and cmdline.py are pure; probe.py finds out, launch.py starts, monitor.py talks."""
