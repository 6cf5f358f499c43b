"""The images of an evaluation: captions, drawing, what a protocol does to an image."""
