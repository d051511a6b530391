"""Commands of mcgrpo that are long enough for a file of their own."""
