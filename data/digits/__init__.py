"""The embedded world: real handwriting in named colours, its captions, its judge and the training of its teacher."""
