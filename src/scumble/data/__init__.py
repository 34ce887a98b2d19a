"""Data: what a model is trained on, token by token.

Handed a tokenizer where it needs one; knows nothing of models.
"""
