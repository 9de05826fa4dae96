"""Segment Anything models behind one interface, and the embedded nano-SAM."""
