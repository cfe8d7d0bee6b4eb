"""Stage by stage: where two attentions, or two checkpoints, first differ.

stages: what an attention shows on a case. compare: two attentions. models: two checkpoints, layer by layer.
hints: names for what two layers do differently.
"""
