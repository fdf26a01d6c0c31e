"""An engine without QEMU, for tests."""
