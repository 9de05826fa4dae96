"""The scalpel recipe: operators, adapter, teacher and pseudo-labels, after Scalpel-SAM (arXiv 2512.22483)."""
