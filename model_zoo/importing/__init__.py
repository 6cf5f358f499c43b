"""Makes teachers' folders out of what people have: single files, variants, pickles."""
