"""T2I-CompBench (Table D): attributes by BLIP-VQA, spatial relations by a detector, actions by CLIP, and their mean."""
