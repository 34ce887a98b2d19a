"""One toolkit for the whole life of a LoRA adapter."""
