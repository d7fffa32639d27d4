"""Weights that are moved while a batch is learnt from: AWP, RWP and MLCAT-WP, SAM and ASAM."""
