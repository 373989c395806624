"""Training: SFT, then step-level DPO (VisRL stages 1 and 2), for every family, on TRL. Torch is imported only where
used.
"""
