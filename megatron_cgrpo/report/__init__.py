"""Runs side by side: one HTML page and one Markdown file from what finished and unfinished runs left on disk."""
