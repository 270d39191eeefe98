"""Training speed on one H100 or H200: bare ceilings, ours beside its peers, where the time goes; needs no network.

Needs torch, numpy, safetensors and tiktoken, and of trainwell only the components that take plain values.
"""
