"""Looking at adapters: their figures, what to expect of a blend of two, tables, heat maps and a page."""
