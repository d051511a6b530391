"""pytest puts this folder on the path, so that the tests of several packages share the helpers beside this file."""
