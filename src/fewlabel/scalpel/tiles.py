"""The tiles' former place; import from `fewlabel.data.tiles`."""

from fewlabel.data.tiles import OVERLAP, TILE, blend_weights, over_tiles, pad, tiles, window

__all__ = ["OVERLAP", "TILE", "blend_weights", "over_tiles", "pad", "tiles", "window"]
