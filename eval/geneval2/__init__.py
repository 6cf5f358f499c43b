"""GenEval 2: prompts of 3 to 10 atoms, and a vision-language model that answers questions about their images."""
