"""Sweeps: many settings trained at once on one base, and what the choice between them costs and brings.

`space` is what may be chosen, `trials` what was chosen, `halving` and `tpe` choose by what came out, `journal` is
`sweep.json`, `running` trains, `table`, `drawing` and `page` show. Knows nothing of how a step is computed.
"""
