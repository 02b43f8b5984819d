"""The network: base model, degradation-guided LoRA, modulation, estimator, one-step diffusion."""
