"""The commands' arguments and what they call, a file a group."""
