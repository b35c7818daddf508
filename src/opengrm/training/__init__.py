"""Training: one file per stage of Self-Principled Critique Tuning (`rft`, `rl`, `meta_rm`), and what stages share."""
