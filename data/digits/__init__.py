"""The digits world: real handwriting in named colours, with captions, a judge, and the training of its teacher."""
