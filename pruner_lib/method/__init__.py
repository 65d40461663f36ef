"""The method of the paper, in torch, numpy and scipy alone: find the groups, score them, choose, cut."""
