"""``python -m megatron_cgrpo`` is ``mcgrpo``."""

from megatron_cgrpo.cli import app

app(prog_name="mcgrpo")
