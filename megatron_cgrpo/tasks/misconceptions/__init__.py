"""The embedded task: chains of modular arithmetic, and a base model that believes some facts wrongly."""
