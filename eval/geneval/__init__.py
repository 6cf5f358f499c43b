"""GenEval: prompts about objects, numbers, colours and places, scored by a detector and CLIP."""
