"""The SDK: the same verbs as the command line, from Python."""
