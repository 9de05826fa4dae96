"""Instance segmentation after S⁴M (arXiv 2504.05301): a Mask2Former teacher, SAM's structure, SAM's masks."""
