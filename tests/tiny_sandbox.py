"""The sandbox with few short problems and a small base model, for whole runs that take seconds."""

TINY_SANDBOX = (
    "task.train_problems=32",
    "task.test_problems=8",
    "task.min_operations=1",
    "task.max_operations=2",
    "warm_start.hidden_size=64",
    "warm_start.heads=2",
    "warm_start.kv_heads=2",
    "warm_start.ffn_size=96",
)
