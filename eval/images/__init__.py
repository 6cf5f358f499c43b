"""Images of an evaluation: their captions, drawing them, and the protocol's image processing."""
