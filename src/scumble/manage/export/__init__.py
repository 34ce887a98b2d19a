"""The forms that other tools take: GGUF, vLLM, a model card, the hub."""
