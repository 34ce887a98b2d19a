"""The lesson's claims, tested on the embedded base: what is trained for them, what came of it, and one page."""
