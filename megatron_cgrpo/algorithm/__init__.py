"""The objective of Critique-GRPO as pure functions: torch only, no configuration, process group or engine inside."""
